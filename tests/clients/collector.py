"""A collector of traces that keeps what it gets: OTLP over HTTP as JSON."""

import http.server
import json
import threading
import time


class Collector:
    """`with Collector() as collector:`. `status` is its answer; None never answers."""

    def __init__(self, status=200):
        self.status = status
        self.calls = []
        self.release = threading.Event()
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.collector = self
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()

    def spans(self):
        """All spans so far, attributes as a dictionary."""
        found = []
        for call in list(self.calls):
            for resource in call["resourceSpans"]:
                assert attributes_of(resource["resource"])["service.name"] == "pagoda"
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
        return int(inner)
    return [plain(one) for one in inner["values"]] if kind == "arrayValue" else inner


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        collector = self.server.collector
        body = self.rfile.read(int(self.headers["content-length"]))
        if collector.status is None:
            collector.release.wait()
            return
        assert self.path == "/v1/traces" and self.headers["content-type"] == "application/json"
        if collector.status == 200:
            collector.calls.append(json.loads(body))
        self.send_response(collector.status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass
