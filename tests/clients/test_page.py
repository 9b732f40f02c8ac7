"""The chat page, driven in Chromium: it streams, stops, shows its speed, and fits a phone."""

import contextlib

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait


@contextlib.contextmanager
def chromium(width, height):
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
