"""TLS before real clients: a certificate authority made here, certificates that change under load."""

import json
import signal
import socket
import ssl
import subprocess
import threading
import time

import httpx
import openai
import pytest

from server import Server

CHAT = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}


def openssl(*arguments, cwd):
    subprocess.run(["openssl", *map(str, arguments)], cwd=cwd, check=True, capture_output=True)


class Authority:
    """Signs certificates for 127.0.0.1, through an authority in between as most do."""

    def __init__(self, folder):
        self.folder = folder
        self.pairs = 0
        self._sign("root", [], "CA:TRUE")
        self._sign("between", ["-CA", "root.pem", "-CAkey", "root.key"], "CA:TRUE")
        self.context = ssl.create_default_context(cafile=folder / "root.pem")

    def _sign(self, name, issuer, constraints, *more):
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        openssl("req", "-x509", *curve, "-nodes", "-days", "2", "-subj", f"/CN={name}", *issuer,
                "-addext", f"basicConstraints=critical,{constraints}", *more,
                "-keyout", f"{name}.key", "-out", f"{name}.pem", cwd=self.folder)

    def pair(self):
        """A new certificate with those that lead to the root, and its key."""
        self.pairs += 1
        name = f"leaf{self.pairs}"
        self._sign(name, ["-CA", "between.pem", "-CAkey", "between.key"], "CA:FALSE",
                   "-addext", "subjectAltName=IP:127.0.0.1,DNS:a.example")
        chain = self.folder / f"{name}.chain.pem"
        parts = [self.folder / f"{part}.pem" for part in (name, "between")]
        chain.write_text("".join(part.read_text() for part in parts))
        return chain, self.folder / f"{name}.key"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def put(pair, files):
    """Puts a pair in place, one file after the other, as a program that renews them does."""
    for new, file in zip(pair, files, strict=True):
        fresh = file.with_suffix(".new")
        fresh.write_bytes(new.read_bytes())
        fresh.rename(file)


@pytest.fixture(scope="module")
def files(tmp_path_factory, authority):
    folder = tmp_path_factory.mktemp("served")
    files = (folder / "cert.pem", folder / "key.pem")
    put(authority.pair(), files)
    return files


@pytest.fixture(scope="module")
def served(authority, files):
    with Server("--tls-cert", files[0], "--tls-key", files[1], verify=authority.context) as server:
        yield server
        server.wait_idle()
        assert server.stop() == 0


def shown(server, authority, name=None):
    """The certificate that a new connection is shown."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
        with authority.context.wrap_socket(plain, server_hostname=name or "127.0.0.1") as tls:
            return tls.getpeercert()["serialNumber"]


def test_the_sdk_talks_as_it_does_without_tls(served, authority):
    assert f"Listening on https://127.0.0.1:{served.port}" in served.output()
    with httpx.Client(verify=authority.context) as http:
        client = openai.OpenAI(
            base_url=served.url + "/v1", api_key="any", http_client=http, max_retries=0
        )
        whole = client.chat.completions.create(model="default", **CHAT).choices[0].message.content
        stream = client.chat.completions.create(model="default", stream=True, **CHAT)
        parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert whole and "".join(parts) == whole


def test_http2_is_chosen_in_the_handshake(served, authority):
    with httpx.Client(http2=True, verify=authority.context, base_url=served.url) as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
    with httpx.Client(verify=authority.context, base_url=served.url) as client:
        assert client.get("/version").http_version == "HTTP/1.1"


def test_a_client_may_name_another_host_or_none(served, authority):
    assert shown(served, authority, "a.example") == shown(served, authority)
    nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nameless.load_verify_locations(authority.folder / "root.pem")
    nameless.check_hostname = False
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as plain:
        with nameless.wrap_socket(plain) as tls:
            tls.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert tls.recv(64).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_from_1_2_on_are_spoken(served, authority, version):
    context = ssl.create_default_context(cafile=authority.folder / "root.pem")
    context.minimum_version = context.maximum_version = version
    assert httpx.get(served.url + "/health", verify=context).status_code == 200


def test_http_without_tls_is_closed(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        said = b""
        try:
            while part := plain.recv(4096):
                said += part
        except ConnectionResetError:
            pass
        assert b"HTTP" not in said


def test_whoever_leaves_is_cancelled(served, authority):
    ask = {**CHAT, "stream": True, "n": 8, "ignore_eos": True}
    with httpx.Client(verify=authority.context, base_url=served.url) as client:
        with client.stream("POST", "/v1/chat/completions", json=ask) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: {")
            assert served.metrics()["pagoda_requests_running"] > 0
    served.wait_idle()


def test_a_new_pair_is_taken_under_load_and_no_request_is_lost(served, authority, files):
    stop = threading.Event()
    counts, failures = [0, 0], []

    def load(index):
        """Half keep their connections; half make one for each request."""
        while not stop.is_set():
            try:
                with httpx.Client(verify=authority.context, timeout=60) as client:
                    for _ in range(20 if index % 2 else 1):
                        client.get(served.url + "/v1/models").raise_for_status()
                        counts[index % 2] += 1
            except httpx.HTTPError as error:
                failures.append(repr(error))
                return

    threads = [threading.Thread(target=load, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    before = shown(served, authority)
    try:
        for how in ("change", "hangup"):
            put(authority.pair(), files)
            if how == "hangup":
                served.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 30
            while (now := shown(served, authority)) == before:
                assert time.monotonic() < deadline, "the new certificate is not shown"
                time.sleep(0.01)
            before = now
        # Files that do not fit each other are told, and change nothing.
        files[1].write_bytes(authority.pair()[1].read_bytes())
        deadline = time.monotonic() + 30
        while "is not that of the certificate" not in served.output():
            assert time.monotonic() < deadline, served.output()
            time.sleep(0.05)
        assert shown(served, authority) == before
        put(authority.pair(), files)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures
    assert min(counts) > 20, counts


def refused(*flags):
    """What a start with these flags says, whose exit status must be that of wrong settings."""
    server = Server(*flags)
    assert server.process.wait(timeout=30) == 2
    return server.output()


def test_a_pair_that_cannot_be_served_ends_the_start(authority, tmp_path):
    certificate, key = authority.pair()
    other = authority.pair()[1]
    assert "tls-cert: needs --tls-key" in refused("--tls-cert", certificate)
    assert "tls-key: needs --tls-cert" in refused("--tls-key", key)
    said = refused("--tls-cert", certificate, "--tls-key", other)
    assert f"the key in {other} is not that of the certificate in {certificate}" in said
    said = refused("--tls-cert", certificate, "--tls-key", tmp_path / "none")
    assert f"cannot read {tmp_path}/none: No such file" in said
    expired = tmp_path / "expired.pem"
    openssl("x509", "-in", certificate, "-signkey", key, "-days", -1, "-out", expired, cwd=tmp_path)
    said = refused("--tls-cert", expired, "--tls-key", key)
    assert f"{expired} holds a certificate that expired on 20" in said


def client_lines(server):
    """Addresses of clients in the log, in order."""
    lines = [line for line in server.output().splitlines() if line.startswith("{")]
    return [line["client"] for line in map(json.loads, lines) if line.get("route") == "/v1/models"]


@pytest.mark.parametrize(
    ("flags", "said"), [((), "127.0.0.1"), (("--trusted-proxies", "127.0.0.0/8"), "1.2.3.4")]
)
def test_only_a_trusted_proxy_says_who_calls(flags, said):
    with Server("--log-format", "json", *flags) as server:
        headers = {"X-Forwarded-For": "6.6.6.6, 1.2.3.4, 127.0.0.9"}
        assert httpx.get(server.url + "/v1/models", headers=headers).status_code == 200
        deadline = time.monotonic() + 10
        while not client_lines(server):
            assert time.monotonic() < deadline, server.output()
            time.sleep(0.01)
        assert client_lines(server) == [said]
