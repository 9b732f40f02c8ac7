"""The private Postgres of `pagoda-control`: joined, killed, backed up, never left behind."""

import json
import os
import pathlib
import signal
import socket
import time

import httpx
import pytest

from server import free_port
from test_control import Control, command_line, folder

__all__ = ["folder"]


def processes_in(folder):
    """Ids of processes that work in `folder`, which servers of Postgres do in their data."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "cwd") == str(folder):
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def data(folder):
    return folder.resolve() / "data/postgres/data"


def admin(folder, *arguments):
    """What a command about users and keys answers: objects."""
    done = command_line(folder, "admin", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(300)
def test_no_postgres_outlives_its_owner_however_that_ends(folder):
    for how, status in [(signal.SIGKILL, -9), (signal.SIGTERM, 0), (signal.SIGINT, 0)]:
        with Control(folder) as control:
            admin(folder, "first")
            assert len(admin(folder, "list-users")) == 1
            assert processes_in(data(folder))
            control.process.send_signal(how)
            assert control.process.wait(60) == status
        # The kernel told a server whose owner was killed; it ends in order, by itself.
        wait_until(lambda: not processes_in(data(folder)))


@pytest.mark.timeout(300)
def test_a_killed_postgres_comes_back_and_ready_tells_the_truth_meanwhile(folder):
    with Control(folder) as control:
        admin(folder, "first")
        before = set(processes_in(data(folder)))
        # The first line of its file is the process that all others belong to.
        os.kill(int((data(folder) / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

        def is_back():
            status = httpx.get(control.url + "/ready", timeout=10).status_code
            assert status in (200, 503)
            assert httpx.get(control.url + "/health").status_code == 200
            return status == 200 and not before & set(processes_in(data(folder)))

        wait_until(is_back)
        assert len(admin(folder, "list-users")) == 1


@pytest.mark.timeout(300)
def test_exit_codes_say_what_was_wrong(folder):
    with Control(folder) as control:
        second = command_line(folder, "serve", "--listen", f"127.0.0.1:{free_port()}")
        assert second.returncode == 1 and "another process runs the Postgres" in second.stderr
        other = folder / "other"
        other.mkdir(mode=0o755)
        taken = command_line(other, "serve", "--listen", f"127.0.0.1:{control.port}")
        assert taken.returncode == 3, taken.stderr
        assert not processes_in(data(other))
    address = "postgresql://someone:canary-word@host:no-port/name"
    wrong = command_line(folder, "migrate", PAGODA_DATABASE_URL=address)
    assert wrong.returncode == 2 and "canary-word" not in wrong.stderr
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    address = f"host=127.0.0.1 port={port} user=someone password=canary-word"
    gone = command_line(folder, "migrate", PAGODA_DATABASE_URL=address)
    assert gone.returncode == 1 and "canary-word" not in gone.stderr


@pytest.mark.timeout(300)
def test_a_backup_taken_while_it_serves_makes_another_installation(folder):
    other = folder / "other"
    (other / "data").mkdir(parents=True)
    for part in [other, other / "data"]:
        part.chmod(0o755)
    backup = str(folder / "backup")
    with Control(folder):
        user = admin(folder, "first")[0]
        key = admin(folder, "create-key", "--user", "admin", "--name", "one")[0]
        taken = command_line(folder, "backup", backup)
        assert taken.returncode == 0 and "secret" in taken.stdout, taken.stderr
    restored = command_line(other, "restore", backup)
    assert restored.returncode == 0 and "secret" in restored.stdout, restored.stderr
    os.link(folder / "data/secret", other / "data/secret")
    with Control(other) as control:
        found = admin(other, "list-users")
        assert [one["id"] for one in found] == [user["id"]]
        assert [one["id"] for one in admin(other, "list-keys")] == [key["id"]]
        # What was sealed opens: a token is signed with a key that the back-up holds.
        assert control.login("admin", user["password"])["accessToken"]
