"""What the commands that look at a service say where something else answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from clip_queue.cli import looking
from clip_queue.cli.main import app
from clip_queue.cli.service import _reason

run = CliRunner().invoke
ANSWERS = {"a page": b"<html>hello</html>", "a list": b"[1]", "an object": b"{}"}


@pytest.fixture(params=ANSWERS)
def stranger(request: pytest.FixtureRequest) -> Iterator[ThreadingHTTPServer]:
    """A server of something else, which keeps the paths that it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.paths.append(self.path)  # type: ignore[attr-defined]
            body = ANSWERS[request.param]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.paths = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(30)
    server.server_close()


@pytest.mark.parametrize("command", ["status", "jobs"])
def test_what_is_not_this_service_is_named(stranger: ThreadingHTTPServer, command: str) -> None:
    url = f"http://127.0.0.1:{stranger.server_port}"
    result = run(app, [command, "--url", url])
    assert result.exit_code == 1
    assert f"what answers at {url} is not clip-queue" in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_a_job_s_name_leads_to_no_other_route(stranger: ThreadingHTTPServer) -> None:
    run(app, ["jobs", "../metrics?x=1", "--url", f"http://127.0.0.1:{stranger.server_port}"])
    assert stranger.paths == ["/jobs/..%2Fmetrics%3Fx%3D1"]  # type: ignore[attr-defined]


def test_what_a_field_must_be_is_told() -> None:
    message = "Input should be 'queued' or 'running'"
    assert (
        _reason(httpx.Response(422, json={"detail": [{"loc": ["query", "state"], "msg": message}]})) == f": {message}"
    )
    assert _reason(httpx.Response(503, json={"message": "Not now."})) == ": Not now."
    for strange in ({}, [], {"detail": []}, {"detail": "x"}, {"detail": [5]}):
        assert _reason(httpx.Response(500, json=strange)) == " (is this clip-queue?)"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("command", ["status", "jobs"])
def test_a_full_disk_is_a_line(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def show(*_: object, **__: object) -> bool:
        print("x" * 100_000)
        return True

    monkeypatch.setattr(f"clip_queue.cli.{command}.show", show)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(typer.Exit) as ended:
            getattr(looking, command)()
        monkeypatch.undo()
    assert ended.value.exit_code == 1
