"""A collector of traces that keeps what it gets: OTLP over HTTP as JSON."""

import http.server
import json
import pathlib
import ssl
import threading
import time

TLS = pathlib.Path(__file__).parent / "tls"
# Who vouches for a collector with HTTPS: nobody but these tests trusts it.
CERTIFICATE = str(TLS / "authority.pem")


class Collector:
    """`with Collector() as collector:`. `answers` are what it says, the last one again and again:
    a status with headers and a body; None never answers. `service` is whose spans it expects."""

    def __init__(self, *answers, service="pagoda", https=False):
        self.answers = list(answers) or [(200, {}, b"{}")]
        self.service = service
        self.calls, self.posts = [], []
        self.release = threading.Event()
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.collector = self
        self.url = f"http{'s' if https else ''}://127.0.0.1:{self.http.server_port}"
        if https:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(TLS / "server.pem")
            self.http.socket = context.wrap_socket(
                self.http.socket, server_side=True, do_handshake_on_connect=False
            )

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()

    def resources(self):
        """What processes say of themselves."""
        calls = list(self.calls)
        return [attributes_of(one["resource"]) for call in calls for one in call["resourceSpans"]]

    def spans(self):
        """All spans so far, attributes as a dictionary."""
        found = []
        for call in list(self.calls):
            for resource in call["resourceSpans"]:
                assert attributes_of(resource["resource"])["service.name"] == self.service
                for scope in resource["scopeSpans"]:
                    found += [{**span, "attributes": attributes_of(span)} for span in scope["spans"]]
        return found

    def wait_for(self, wanted, count=1, timeout_s=20):
        """Spans of which `wanted` is true, once there are `count` of them."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = [span for span in self.spans() if wanted(span)]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} of {count} in {self.spans()}"
            time.sleep(0.05)


def attributes_of(holder):
    return {one["key"]: plain(one["value"]) for one in holder["attributes"]}


def plain(value):
    ((kind, inner),) = value.items()
    if kind == "intValue":
        assert isinstance(inner, str), "OTLP writes 64 bits as text"
        assert -(2**63) <= int(inner) < 2**63, "a collector refuses the whole batch"
        return int(inner)
    return [plain(one) for one in inner["values"]] if kind == "arrayValue" else inner


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        collector = self.server.collector
        body = self.rfile.read(int(self.headers["content-length"]))
        collector.posts.append((time.monotonic(), self.headers, self.path))
        answers = collector.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            collector.release.wait()
            self.close_connection = True
            return
        status, headers, text = answer
        assert self.headers["content-type"] == "application/json"
        if status == 200:
            collector.calls.append(json.loads(body))
        self.send_response(status)
        for name, value in {**headers, "content-length": len(text)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass
