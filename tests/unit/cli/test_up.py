"""``clip-queue up`` around a service that is only imitated: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_queue.cli.up import first_request, stop_signals, up
from clip_queue.shared.settings import Settings
from clip_queue.stack.api_processes import ApiProcesses
from clip_queue.stack.machine import StackError
from tests.unit.cli.printing import console, printed


class Stack:
    """In place of an embedded stack: it starts at once, and ``on_start`` may end the command."""

    def __init__(self, on_start: Callable[[Stack], None], settings: Settings, **options: Any) -> None:
        self.settings = settings
        self.say = options["say"]
        self.embedded = options["redis_url"] is None
        serves = options["serves"]
        self.workers = len(serves) if serves else options["workers"] or 1
        self.models = lambda number: [serves[number - 1]] if serves else settings.models
        self.apis = ApiProcesses(options["apis"] or 1, options["host"], options["port"])
        self.api_url = self.apis.url
        self.data_dir = Path("/data")
        self.logs = Path("/data/logs")
        self.alive = True
        self.pids = {"valkey": 1, "worker-1": 2, **{name: pid for pid, name in enumerate(self.apis.names, 3)}}
        self.calls: list[str] = []
        self._on_start = on_start

    def gpu(self, number: int) -> str | None:
        return "7" if number == 2 else None

    def start(self, *, timeout: float, should_stop: Callable[[], bool]) -> None:
        assert not should_stop()
        self._on_start(self)

    def stop(self) -> None:
        self.calls.append("stop")

    def hurry(self) -> None:
        self.calls.append("hurry")


def run(on_start: Callable[[Stack], None], settings: Settings | None = None, **options: Any) -> tuple[Stack, str]:
    """Run the command to its end: the service, and what was printed."""
    made: list[Stack] = []

    def make(settings: Settings, **given: Any) -> Any:
        made.append(Stack(on_start, settings, **given))
        return made[-1]

    out = console()
    given = {"host": "127.0.0.1", "port": 9001, "workers": None, "redis_url": None, **options}
    try:
        up(out, out, settings or Settings(), make_stack=make, **given)
    finally:
        assert all(stack.calls[-1] == "stop" for stack in made)
    return made[0], printed(out)


def interrupt(_: Stack) -> None:
    """Ctrl-C, while the service starts."""
    os.kill(os.getpid(), signal.SIGINT)


def test_the_overview_says_which_models_each_worker_has() -> None:
    _, text = run(interrupt, Settings(models=["RN50", "emoji-mini"]), serves=["RN50", "emoji-mini"])
    assert "  worker-1  serves RN50" in text
    assert "  worker-2  serves emoji-mini" in text


def test_the_overview_has_each_api_process() -> None:
    _, text = run(interrupt, apis=2)
    assert "  api-1     http://127.0.0.1:9001 pid 3\n  api-2     http://127.0.0.1:9001 pid 4\n" in text


def test_the_overview_says_what_runs_where_and_how_to_stop_it() -> None:
    stack, text = run(interrupt)
    assert "  valkey    on 127.0.0.1, append-only file in /data/valkey pid 1" in text
    assert "  worker-1  serves emoji-mini pid 2" in text
    assert "  api       http://127.0.0.1:9001 pid 3" in text
    assert "  open      http://127.0.0.1:9001/\n" in text
    assert "  docs      http://127.0.0.1:9001/docs" in text
    assert "  logs      /data/logs" in text
    assert "  try       curl -s http://127.0.0.1:9001/clip/compare" in text
    assert "none set (CLIP_QUEUE_API_KEYS): open to all on this machine, bound to loopback" in text
    assert "  note      emoji-mini knows emoji pictures by their names and nothing of photographs" in text
    assert text.endswith("  stop      Ctrl-C\nstopping (once more: kill)\nstopped\n")
    assert stack.calls == ["stop"]


def test_with_a_redis_of_its_own_gpus_and_keys() -> None:
    settings = Settings(models=["ViT-B-16"], api_keys=["secret"])  # type: ignore[list-item]
    _, text = run(interrupt, settings, workers=2, redis_url="redis://:hunter2@box", host="0.0.0.0")
    assert "  redis     the one given\n" in text
    assert "  worker-2  serves ViT-B-16 on GPU 7\n" in text
    assert "  keys      1 set\n" in text
    assert "secret" not in text
    assert "hunter2" not in text
    assert "note" not in text


def test_a_second_signal_kills() -> None:
    def twice(stack: Stack) -> None:
        interrupt(stack)
        os.kill(os.getpid(), signal.SIGTERM)

    stack, _ = run(twice)
    assert stack.calls == ["hurry", "stop"]


def test_lines_of_the_supervisor_are_printed_as_they_are() -> None:
    def on_start(stack: Stack) -> None:
        stack.say("worker-1 ended [exit code 3]; starting it again")
        interrupt(stack)

    assert "worker-1 ended [exit code 3]; starting it again\n" in run(on_start)[1]


def test_a_supervisor_that_has_failed_is_an_error() -> None:
    def fail(stack: Stack) -> None:
        stack.alive = False

    with pytest.raises(StackError, match="the supervisor itself failed; the logs are in /data/logs"):
        run(fail)


def test_a_start_that_fails_is_an_error_unless_it_was_stopped() -> None:
    def fail(stack: Stack) -> None:
        raise StackError("it cannot start")

    def stopped(stack: Stack) -> None:
        interrupt(stack)
        raise StackError("stopped before it was ready")

    with pytest.raises(StackError, match="it cannot start"):
        run(fail)
    assert run(stopped)[1].endswith("stopping (once more: kill)\nstopped\n")


def test_beyond_loopback_a_key_is_needed() -> None:
    with pytest.raises(
        StackError, match=r"no API key is set, so anyone who reaches 10\.1\.2\.3 could use this service"
    ):
        run(interrupt, host="10.1.2.3")


def test_the_first_request_is_a_shell_command() -> None:
    request = first_request("http://127.0.0.1:1", keyed=False)
    echo = request.replace("curl", "printf '%s\\n'", 1)
    printed = subprocess.run(["bash", "-c", echo], capture_output=True, text=True)
    body = json.loads(printed.stdout.splitlines()[-1])
    assert set(body) == {"subject", "subject_type", "prompt"}
    assert "Authorization: Bearer" in first_request("http://127.0.0.1:1", keyed=True)


def test_a_command_of_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals(lambda: None) as should_stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not should_stop()
            os.kill(os.getpid(), signal.SIGTERM)
            assert should_stop()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_the_command_signals_are_handled_as_before() -> None:
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may run the tests
    try:
        before = signal.getsignal(signal.SIGTERM)
        with stop_signals(lambda: None) as should_stop:
            assert not should_stop()
            os.kill(os.getpid(), signal.SIGHUP)
            assert should_stop()
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGHUP, hangup)
