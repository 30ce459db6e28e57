"""What a worker does with a run that it leads: the process beside it, what that says, and how it ends. The process is
one of the test's own."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from clip_queue.bulk.run import led_handler
from clip_queue.bulk.run.led_handler import RunHandler
from clip_queue.shared.job import Inputs, Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.runs import RunRequest
from clip_queue.shared.settings import Settings
from tests.harness import wait_for

REPORT = '{"rows": 7, "failed": 1, "fingerprint": "f", "scope": []}'


class Led:
    """A handler whose process runs ``code``; ``order`` in it is what it was told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        script = folder / "process.py"
        begin = (
            f"import json, os, signal, sys, time\nfolder = {str(folder)!r}\norder = json.loads(sys.stdin.readline())\n"
        )
        script.write_text(begin + "def say(**it): print(json.dumps(it), flush=True)\n" + code)
        monkeypatch.setattr(led_handler, "COMMAND", (sys.executable, str(script)))
        job = Job(Kind.EMBED_DATASET, "m", 0, Lane.BULK, id="1" * 32, owner="me", worker="w")
        engine: Any = SimpleNamespace(settings=Settings(max_attempts=2, redis_url="redis://:secret@h/0"))  # type: ignore[arg-type]
        self.handler = RunHandler(job, RunRequest(["/in"], "/out", {"limit": 3}).to_inputs(), engine)

    def in_thread(self) -> list[Any]:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(self.handler.run()), daemon=True)
        thread.start()
        return found


def test_it_tells_the_progress_and_completes_with_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    led = Led(
        tmp_path,
        monkeypatch,
        "open(folder + '/order', 'w').write(json.dumps([order, os.environ['CLIP_QUEUE_REDIS_URL']]))\n"
        f"say(done=3, failed=1)\nsay(report=json.loads({REPORT!r}))\n",
    )
    completion = led.handler.run()
    assert completion
    assert (completion.state, completion.done, completion.failed) == (State.SUCCEEDED, 7, 1)
    assert (completion.result.fingerprint, completion.result.report) == ("f", orjson.loads(REPORT))
    order, url = orjson.loads((tmp_path / "order").read_bytes())
    assert url == "redis://:secret@h/0"
    request = {"source": ["/in"], "output": "/out", "options": {"limit": 3}, "confined": True}
    assert order == {"job_id": "1" * 32, "model": "m", "owner": "me", "worker": "w", "request": request}


def test_an_error_fails_the_run_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"code": "source", "message": "nothing there", "index": None}
    completion = Led(tmp_path, monkeypatch, f"say(done=2, failed=0)\nsay(error={error!r})\n").handler.run()
    assert completion
    assert (completion.state, completion.result.error, completion.done) == (State.FAILED, error, 2)


def test_a_process_that_was_killed_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    led = Led(
        tmp_path,
        monkeypatch,
        "if not os.path.exists(folder + '/second'):\n"
        "    open(folder + '/second', 'w'); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"say(report=json.loads({REPORT!r}))\n",
    )
    completion = led.handler.run()
    assert completion
    assert completion.state is State.SUCCEEDED


def test_a_process_that_is_killed_each_time_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    led = Led(tmp_path, monkeypatch, "open(folder + '/times', 'a').write('x'); os.kill(os.getpid(), signal.SIGKILL)\n")
    completion = led.handler.run()
    assert completion
    assert completion.state is State.FAILED
    assert completion.result.error
    assert "status -9" in completion.result.error["message"]
    assert (tmp_path / "times").read_text() == "xx"


def test_one_that_gets_on_between_deaths_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    led = Led(
        tmp_path,
        monkeypatch,
        "open(folder + '/times', 'a').write('x'); n = len(open(folder + '/times').read())\n"
        f"if n == 5: say(report=json.loads({REPORT!r})); sys.exit()\n"
        "say(done=n, failed=0); os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    completion = led.handler.run()
    assert completion
    assert completion.state is State.SUCCEEDED


@pytest.mark.parametrize("heeds", [True, False])
def test_abandoned_it_ends_its_process_and_completes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heeds: bool
) -> None:
    monkeypatch.setattr(led_handler, "STOP_TIMEOUT", 1.0)
    ignore = "" if heeds else "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    led = Led(tmp_path, monkeypatch, f"{ignore}open(folder + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n")
    found = led.in_thread()
    pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 60))
    led.handler.abandon()
    wait_for(lambda: found, 60)
    assert found == [None]
    assert not Path(f"/proc/{pid}").exists()


def test_a_process_that_stops_by_itself_completes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Led(tmp_path, monkeypatch, "say(stopped=True)\n").handler.run() is None


def test_inputs_that_cannot_be_read_fail_the_run() -> None:
    job = Job(Kind.EMBED_DATASET, "m", 0, Lane.BULK)
    engine: Any = SimpleNamespace(settings=Settings())
    completion = RunHandler(job, Inputs([b"{"]), engine).run()
    assert completion
    assert completion.result.error
    assert completion.result.error["code"] == "unreadable"


def test_the_process_ends_with_its_standard_input() -> None:
    """As it does with the worker, whatever it does at the time."""
    import os
    import subprocess

    process = subprocess.Popen(led_handler.COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ})
    assert process.stdin
    request = {"source": ["/nowhere"], "output": "/nowhere/out", "options": {}, "confined": False}
    order = {"job_id": "1" * 32, "model": "m", "owner": "me", "worker": "w", "request": request}
    process.stdin.write(orjson.dumps({**order, "request": {**request, "source": ["http://127.0.0.1:9/x.csv"]}}) + b"\n")
    process.stdin.close()
    assert process.wait(100) in (0, 1)
