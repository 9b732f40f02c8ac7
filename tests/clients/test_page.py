"""The chat page, driven in Chromium: it streams, stops, shows its speed, and fits a phone."""

import contextlib
import json

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from server import Server


@contextlib.contextmanager
def chromium(width, height, refuses=False):
    """A browser whose console stays clean, but for requests that the server refuses."""
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    try:
        browser.set_page_load_timeout(60)
        yield browser
        errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        if refuses:
            errors = [entry for entry in errors if "401 (Unauthorized)" not in entry["message"]]
        assert not errors, errors
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def desk(server):
    with chromium(1200, 900) as browser:
        yield browser


def wait(browser, condition, timeout_s=60):
    return WebDriverWait(browser, timeout_s, poll_frequency=0.02).until(condition)


def texts(browser, role):
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, "#log ." + role)]


def say(browser, text):
    browser.find_element(By.ID, "input").send_keys(text, Keys.ENTER)


def idle(browser):
    return browser.find_element(By.ID, "send").text == "Send"


def test_a_message_is_answered_in_a_stream_with_its_speed(desk, server, tmp_path):
    desk.get(server.url + "/")
    wait(desk, lambda b: b.find_element(By.ID, "model").text)
    # Every length that the answer's text takes while it grows.
    desk.execute_script(
        "window.lengths = []; new MutationObserver(() => {"
        " const all = document.querySelectorAll('#log .assistant');"
        " if (all.length) lengths.push(all[all.length - 1].textContent.length);"
        "}).observe(document.getElementById('log'),"
        " {childList: true, subtree: true, characterData: true});"
    )
    say(desk, "What is Pagoda?")
    wait(desk, lambda b: idle(b) and texts(b, "assistant") and texts(b, "assistant")[-1])
    assert texts(desk, "user") == ["What is Pagoda?"]
    lengths = desk.execute_script("return lengths")
    assert len(set(lengths)) > 3, "the answer came in one piece"
    assert "tokens/s" in desk.find_element(By.ID, "speed").text
    desk.save_screenshot(str(tmp_path / "desk.png"))


def test_the_second_turn_knows_the_first_and_a_new_chat_does_not(desk, server):
    desk.get(server.url + "/")
    for text in ("Hello!", "17 + 25 = ?"):
        wait(desk, idle)
        say(desk, text)
        wait(desk, lambda b: idle(b) and len(texts(b, "assistant")) == len(texts(b, "user")))
    assert len(texts(desk, "user")) == 2
    desk.find_element(By.ID, "clear").click()
    wait(desk, lambda b: texts(b, "user") == [])


def test_stop_ends_the_answer_and_frees_the_server(desk, server):
    desk.get(server.url + "/")
    # The page asks for an answer that would not end by itself.
    desk.execute_script(
        "const whole = window.fetch; window.fetch = (url, options) => {"
        " if (options && options.method === 'POST') {"
        "  const body = JSON.parse(options.body); body.ignore_eos = true;"
        "  options.body = JSON.stringify(body); }"
        " return whole(url, options); };"
    )
    say(desk, "Hello!")
    wait(desk, lambda b: b.find_element(By.ID, "send").text == "Stop")
    wait(desk, lambda b: texts(b, "assistant") and texts(b, "assistant")[-1])
    desk.find_element(By.ID, "send").click()
    wait(desk, idle)
    server.wait_idle()


def answer_with(browser, *events):
    """From now on the page is answered by these events, all in one piece."""
    frames = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    browser.execute_script(
        "window.performance.now = () => 1000;"
        "window.fetch = async () => new Response(arguments[0]);",
        frames,
    )


def said(text, tokens, reason=None):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return {"choices": [choice], "usage": {"completion_tokens": tokens}}


def test_an_answer_that_took_no_time_has_no_speed(desk, server):
    desk.get(server.url + "/")
    answer_with(desk, said("one", 1), said(" two", 2), said("", 3, "stop"))
    say(desk, "Hello!")
    wait(desk, lambda b: idle(b) and "3 tokens" in texts(b, "assistant")[-1])
    assert "Infinity" not in desk.find_element(By.TAG_NAME, "body").text
    assert "cut off" not in texts(desk, "assistant")[-1]


def test_a_stream_that_ends_early_is_shown_as_cut_off(desk, server):
    desk.get(server.url + "/")
    answer_with(desk, said("half an", 2))
    say(desk, "Hello!")
    wait(desk, lambda b: idle(b) and texts(b, "assistant"))
    assert "half an" in texts(desk, "assistant")[-1]
    assert "cut off" in desk.find_element(By.CSS_SELECTOR, "#log .error").text


def test_a_refused_message_comes_back_and_a_key_names_the_model():
    with Server("--api-key", "sk-page") as server, chromium(1200, 900, refuses=True) as browser:
        browser.get(server.url + "/")
        wait(browser, lambda b: b.find_element(By.ID, "key").is_displayed())
        say(browser, "Hello!")
        wait(browser, lambda b: idle(b) and b.find_elements(By.CSS_SELECTOR, "#log .error"))
        assert browser.find_element(By.ID, "input").get_attribute("value") == "Hello!"
        assert browser.find_element(By.ID, "model").text == ""
        browser.find_element(By.ID, "key").send_keys("sk-page", Keys.TAB)
        wait(browser, lambda b: b.find_element(By.ID, "model").text)
        browser.find_element(By.ID, "send").click()
        wait(browser, lambda b: idle(b) and texts(b, "assistant")[-1].count("tokens"))
        assert browser.find_element(By.ID, "input").get_attribute("value") == ""


def test_text_from_the_model_is_never_markup(desk, server):
    desk.get(server.url + "/")
    wait(desk, idle)
    say(desk, "<img src=x onerror=\"document.title='taken'\">")
    wait(desk, lambda b: idle(b) and texts(b, "user"))
    assert desk.title == "Pagoda"
    assert not desk.find_elements(By.CSS_SELECTOR, "#log img")


def test_it_fits_a_phone(server, tmp_path):
    with chromium(500, 900) as browser:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 375, "height": 700, "deviceScaleFactor": 2, "mobile": True},
        )
        browser.get(server.url + "/")
        say(browser, "Hello!")
        wait(browser, lambda b: idle(b) and texts(b, "assistant") and texts(b, "assistant")[-1])
        width, inner = browser.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert width <= inner == 375, (width, inner)
        for name in ("input", "send"):
            box = browser.find_element(By.ID, name).rect
            assert box["x"] >= 0 and box["x"] + box["width"] <= 375
            assert 0 <= box["y"] and box["y"] + box["height"] <= 700
        browser.save_screenshot(str(tmp_path / "phone.png"))
