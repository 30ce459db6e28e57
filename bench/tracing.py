"""What spans cost (OTEL_EXPORTER_OTLP_ENDPOINT): sent to a receiver on the same cores against off, in short turns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bench.celery import compare
from bench.versus import CASES, served

# A process of its own, which keeps nothing of what it gets.
RECEIVER = """
import http.server, sys
class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_port, flush=True)
server.serve_forever()
"""


def main() -> None:
    with receiver() as url:
        for name in ("texts", "latency"):
            case = CASES[name]
            env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
            with served(case, None) as off, served(case, None, env) as on:
                compare(name, case, off, on)


@contextmanager
def receiver() -> Iterator[str]:
    """A receiver of OTLP over HTTP. Yields its URL."""
    process = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait(10)


if __name__ == "__main__":
    main()
