"""Data planes that follow a control plane: who may call, everywhere, within a second."""

import contextlib
import time

import httpx
import pytest

from server import Server, free_port
from test_control import PASSWORD, Control, command_line, folder, make_root

__all__ = ["folder"]


def plane(folder, control_port, name):
    """A data plane with a folder of its own, so that it is the same one when it starts again."""
    secret = folder / "planes-secret"
    if not secret.exists():
        secret.write_text(command_line(folder, "secret", "planes").stdout)
    return Server(
        *("--control-plane", f"127.0.0.1:{control_port}", "--plane-secret-file", secret),
        *("--state-dir", folder / f"state-{name}", "--plane-name", name),
    )


def ask(server, credential, model="default"):
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    return httpx.post(f"{server.url}/v1/chat/completions", headers=headers, json=body, timeout=30)


def until(seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def knows(server):
    told = httpx.get(f"{server.url}/ready").json()
    return told["control_plane"]["revision"]


@pytest.mark.timeout(600)
def test_what_is_taken_back_is_refused_everywhere_within_a_second(folder):
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(Control(folder))
        make_root(folder)
        root = control.login("root", PASSWORD)["accessToken"]
        planes = [stack.enter_context(plane(folder, control.port, name)) for name in "abc"]
        for one in planes:
            until(20, lambda: knows(one) is not None)
            assert ask(one, None).status_code == 401
            assert ask(one, root).status_code == 200

        def made(**settings):
            user = control.call("POST", "/admin/users", root, username=f"u{time.monotonic_ns()}",
                                email=f"{time.monotonic_ns()}@example.com", password=PASSWORD).json()["data"]["id"]
            answer = control.call("POST", "/admin/keys", root, userId=user, name="k", **settings)
            assert answer.status_code in (200, 201) and "x-pagoda-laggards" not in answer.headers, answer.text
            return user, answer.json()["data"]["id"], answer.json()["data"]["key"]

        def everywhere(credential, status):
            return [ask(one, credential).status_code for one in planes] == [status] * len(planes)

        takes = [
            lambda user, key: control.call("PUT", f"/admin/keys/{key}", root, enabled=False),
            lambda user, key: control.call("DELETE", f"/admin/keys/{key}", root),
            lambda user, key: control.call("PUT", f"/admin/users/{user}", root, enabled=False),
        ]
        for take in takes * 3:
            user, key, secret = made()
            # It is answered once all planes know: no plane is behind, not even for a moment.
            assert everywhere(secret, 200)
            began = time.monotonic()
            taken = take(user, key)
            assert taken.status_code == 200, taken.text
            assert everywhere(secret, 401)
            # The one deadline of the contract.
            assert time.monotonic() - began < 1 + 3 * 0.5
        user, _, secret = made(models=["other"])
        assert ask(planes[0], secret).status_code == 404
        listed = httpx.get(f"{planes[0].url}/v1/models", headers={"authorization": f"Bearer {secret}"})
        assert listed.json()["data"] == []


@pytest.mark.timeout(600)
def test_planes_serve_on_without_the_control_plane_and_after_a_start_of_their_own(folder):
    port = free_port()
    with Control(folder, port) as control:
        make_root(folder)
        root = control.login("root", PASSWORD)["accessToken"]
        user = control.call("POST", "/admin/users", root, username="a", email="a@example.com", password=PASSWORD)
        answer = control.call("POST", "/admin/keys", root, userId=user.json()["data"]["id"], name="k")
        key, secret = answer.json()["data"]["id"], answer.json()["data"]["key"]
        with plane(folder, port, "a") as one:
            until(20, lambda: knows(one) is not None)
            assert ask(one, secret).status_code == 200
            control.process.kill()
            control.process.wait()
            assert ask(one, secret).status_code == 200
            assert httpx.get(f"{one.url}/ready").status_code == 200
    with plane(folder, port, "a") as one:
        assert ask(one, secret).status_code == 200, "from what it saved"
        assert ask(one, "sk-wrong").status_code == 401
        with Control(folder, port) as control:
            root = control.login("root", PASSWORD)["accessToken"]
            assert control.call("PUT", f"/admin/keys/{key}", root, enabled=False).status_code == 200
            until(20, lambda: ask(one, secret).status_code == 401)
    with plane(folder, port, "new") as one:
        refused = ask(one, secret)
        assert refused.status_code == 503 and refused.headers["retry-after"], "nobody told it anything"
        assert refused.json()["error"]["code"] == "control_plane_unknown"


@pytest.mark.timeout(300)
def test_a_plane_with_another_secret_learns_nothing(folder):
    with Control(folder) as control:
        (folder / "planes-secret").write_text("A" * 43 + "\n")
        with plane(folder, control.port, "a") as one:
            time.sleep(2)
            assert knows(one) is None and ask(one, "sk-x").status_code == 503
            assert "401" in one.output()
