"""The control plane's binary from its start: a private Postgres, the first administrator, keys."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time

import httpx
import pytest

from server import BINARY, free_port

CONTROL = str(pathlib.Path(BINARY).with_name("pagoda-control"))
PASSWORD = "canary-correct-horse-battery"


class Control:
    """A control plane over a private Postgres in `folder`, whose data stays."""

    def __init__(self, folder, port=None):
        self.port = port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "control.log"
        command = [CONTROL, "serve", "--data-dir", str(folder / "data"), "--listen", f"127.0.0.1:{port}"]
        self.process = subprocess.Popen(command, stdout=self.log.open("ab"), stderr=subprocess.STDOUT)

    def ready(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if (answer := httpx.get(f"{self.url}/ready")).status_code == 200:
                    return self
                assert answer.status_code == 503 and "retry-after" in answer.headers, answer.text
            except httpx.TransportError:
                pass
            time.sleep(0.01)
        raise AssertionError(self.log.read_text())

    def call(self, method, path, token=None, **body):
        headers = {"authorization": f"Bearer {token}"} if token else {}
        url = f"{self.url}/profiles/enterprise/api/v1{path}"
        return httpx.request(method, url, headers=headers, json=body or None, timeout=30)

    def login(self, name, password):
        answer = self.call("POST", "/auth/login", username=name, password=password)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log.read_text()

    def __enter__(self):
        return self.ready()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()


def command_line(folder, *arguments, **env):
    command = [CONTROL, *arguments, "--data-dir", str(folder / "data")]
    env = {**os.environ, **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


def make_root(folder):
    """The first administrator, of which there is one however often it is asked for."""
    admin = {"EMAIL": "root@example.com", "USERNAME": "root", "PASSWORD": PASSWORD}
    env = {f"PAGODA_ADMIN_{name}": value for name, value in admin.items()}
    made = command_line(folder, "admin", "first", **env)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


@pytest.fixture
def folder(tmp_path_factory):
    # A socket's path has 107 bytes at most, and the account of Postgres must reach it.
    folder = tmp_path_factory.mktemp("c")
    for part in [folder, *folder.parents][:3]:
        part.chmod(0o755)
    return folder


@pytest.mark.timeout(300)
def test_what_a_first_start_made_is_there_after_a_second_one(folder):
    with Control(folder) as control:
        assert make_root(folder)["role"] == "admin"
        assert "message" in make_root(folder)
        token = control.login("root", PASSWORD)["accessToken"]
        made = control.call("POST", "/admin/users", token, username="alice", email="a@example.com", password=PASSWORD)
        assert made.status_code in (200, 201), made.text
        alice = made.json()["data"]["id"]
        made = control.call("POST", "/admin/keys", token, userId=alice, name="first")
        assert re.fullmatch(r"sk-[0-9A-Za-z]{12}-[0-9A-Za-z_-]{43}", made.json()["data"]["key"])
        key = made.json()["data"]["key"]
        listed = control.call("GET", "/admin/keys", token)
        assert key not in listed.text and key[16:] not in listed.text
    with Control(folder) as control:
        root = control.login("root", PASSWORD)["accessToken"]
        control.login("a@example.com", PASSWORD)
        # A token of the first start is one of the second: the keys that sign are kept.
        assert control.call("GET", "/admin/users", token).status_code == 200
        for credential in [None, "sk-wrong", "a.b.c", key]:
            refused = control.call("GET", "/admin/users", credential)
            assert refused.status_code == (403 if credential == key else 401), (credential, refused.text)
            assert refused.json()["data"] is None and refused.json()["code"] != 0
        off = control.call("PUT", f"/admin/users/{alice}", root, enabled=False)
        assert off.status_code == 200, off.text
        assert control.call("GET", "/admin/users", key).status_code == 401
    said = (folder / "control.log").read_text()
    assert PASSWORD not in said and key[16:] not in said and token not in said


@pytest.mark.timeout(300)
def test_a_killed_one_is_found_again_by_the_next(folder):
    for _ in range(3):
        control = Control(folder).ready()
        make_root(folder)
        control.login("root", PASSWORD)
        control.process.kill()
        control.process.wait()
    with Control(folder) as control:
        control.login("root", PASSWORD)


@pytest.mark.timeout(120)
def test_the_command_line_tells_what_is_wrong(folder):
    wrong = command_line(folder, "serve", PAGODA_DATABASE_URL="postgresql://u:canary-secret@127.0.0.1:1/none")
    assert wrong.returncode != 0 and "canary-secret" not in wrong.stdout + wrong.stderr
    assert command_line(folder, "serve", "--no-such-option").returncode == 2
