"""Health checks of containers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from clip_queue.cli import health
from clip_queue.shared.settings import Settings
from clip_queue.stack.machine import free_port


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server that is healthy."""
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_an_api_that_answers_is_healthy(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", str(port))
    assert health.api() is True


def test_nothing_is_healthy_where_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", str(free_port()))
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0")  # type: ignore[arg-type]
    assert health.api() is False
    assert health.worker(settings) is False


def test_the_exit_code_is_0_only_if_it_is_healthy(port: int) -> None:
    command = [sys.executable, "-m", "clip_queue.cli.health", "api"]
    for number, status in ((port, 0), (free_port(), 1)):
        assert subprocess.run(command, env={"PORT": str(number)}, timeout=60).returncode == status


@pytest.mark.parametrize(
    ("arguments", "setting", "code", "said"),
    [
        ([], {}, 1, "usage: "),
        (["none"], {}, 1, "usage: "),
        (["worker"], {"CLIP_QUEUE_LEASE": "abc"}, 78, "CLIP_QUEUE_LEASE"),
        (["worker"], {"CLIP_QUEUE_REDIS_URL": "foo"}, 78, "CLIP_QUEUE_REDIS_URL"),
    ],
)
def test_what_is_wrong_with_a_check_is_a_line(
    arguments: list[str], setting: dict[str, str], code: int, said: str
) -> None:
    command = [sys.executable, "-m", "clip_queue.cli.health", *arguments]
    done = subprocess.run(command, env=setting, timeout=60, capture_output=True, text=True)
    assert done.returncode == code
    [line] = done.stderr.splitlines()
    assert said in line
