"""Starts the real `pagoda` binary on a free loopback port, and reads what it says of itself."""

import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
from resource import RLIMIT_NOFILE, setrlimit

import httpx

BINARY = pathlib.Path(
    os.environ.get("PAGODA_BIN", pathlib.Path(__file__).parents[2] / "target/debug/pagoda")
)
START_TIMEOUT_S = 90


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One running `pagoda`. `with Server("--flag", "value") as server:` ends it by SIGTERM.

    `open_files` are its soft and its hard limit of them; `verify` is what a client of a server that
    speaks TLS checks it by.
    """

    def __init__(self, *flags, env=None, port=None, open_files=None, verify=None):
        self.port = port or free_port()
        self.url = f"{'https' if verify else 'http'}://127.0.0.1:{self.port}"
        self.verify = verify or True
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [str(BINARY), "--port", str(self.port), *map(str, flags)],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            preexec_fn=open_files and (lambda: setrlimit(RLIMIT_NOFILE, open_files)),
        )

    def __enter__(self):
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"pagoda ended with {self.process.returncode}:\n{self.output()}")
            try:
                if httpx.get(self.url + "/ready", verify=self.verify).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        self.process.kill()
        raise RuntimeError(f"pagoda was not ready in time:\n{self.output()}")

    def __exit__(self, *_):
        self.stop()

    def stop(self, how=signal.SIGTERM):
        """Ends the server and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def output(self):
        """Everything printed so far."""
        self.log.flush()
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode(errors="replace")

    def metrics(self):
        """Name (without labels) to the sum of its values over all labels."""
        values = {}
        for line in httpx.get(self.url + "/metrics", verify=self.verify).text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0]
                values[name] = values.get(name, 0.0) + float(value)
        return values

    def wait_idle(self, timeout_s=20):
        """Waits until nothing runs or waits and every KV block is free; fails if that never comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            metrics = self.metrics()
            busy = {
                name: metrics[name]
                for name in (
                    "pagoda_requests_running",
                    "pagoda_requests_waiting",
                    "pagoda_kv_cache_usage_ratio",
                )
                if metrics[name] != 0
            }
            if not busy:
                return metrics
            assert time.monotonic() < deadline, f"not idle: {busy}"
            time.sleep(0.02)
