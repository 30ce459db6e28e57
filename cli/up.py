"""``clip-queue up``: the whole service on this machine, until Ctrl-C."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.markup import escape

from clip_queue.shared.models import NOTICES, parse_models
from clip_queue.shared.settings import Settings
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.stack.machine import StackError, is_loopback
from clip_queue.version import __version__

START_TIMEOUT = 3600.0  # seconds; a first start may download gigabytes of weights
POLL_INTERVAL = 0.1  # seconds between checks whether to stop

Say = Callable[[str], None]  # a line of rich's markup


def up(
    console: Console, settings: Settings, *, host: str, port: int, workers: int | None, redis_url: str | None
) -> None:
    """Serve until Ctrl-C or SIGTERM; a second one kills instead of waiting.

    Raises:
        StackError: it cannot start, or cannot go on.
    """

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    if not is_loopback(host) and not settings.api_keys:
        raise StackError(
            f"no API key is set, so anyone who reaches {host} could use this service: set CLIP_QUEUE_API_KEYS to one "
            "key or more, or listen on 127.0.0.1"
        )
    begin = time.monotonic()
    stack = EmbeddedStack(
        settings,
        workers=workers,
        host=host,
        port=port,
        redis_url=redis_url,
        data_dir=settings.data_dir,
        say=lambda line: say(f"[yellow]{escape(line)}[/]"),
    )
    with stop_signals(stack.hurry) as should_stop:
        try:
            say(f"[bold]clip-queue {__version__}[/]: starting {escape(', '.join(parse_models(settings.models)))}")
            stack.start(timeout=START_TIMEOUT, should_stop=should_stop)
            introduce(say, stack, time.monotonic() - begin)
            while not should_stop():
                if not stack.alive:
                    raise StackError(f"the supervisor itself failed; the logs are in {stack.logs}")
                time.sleep(POLL_INTERVAL)
        except StackError:
            if not should_stop():
                raise
        finally:
            if should_stop():
                say("stopping [dim](once more: kill)[/]")
            stack.stop()
    say("stopped")


def introduce(say: Say, stack: EmbeddedStack, seconds: float) -> None:
    """What runs where, and what to try first."""
    settings, url, pids = stack.settings, stack.api_url, stack.pids
    rows = []
    if stack.embedded:
        rows.append(("valkey", f"on 127.0.0.1, append-only file in {stack.data_dir / 'valkey'}", "valkey"))
    else:
        rows.append(("redis", "the one given", ""))
    served = ", ".join(parse_models(settings.models))
    for number in range(1, stack.workers + 1):
        gpu = stack.gpu(number)
        place = "" if gpu is None else f" on GPU {gpu}"
        rows.append((f"worker-{number}", f"serves {served}{place}", f"worker-{number}"))
    rows.append(("api", url, "api"))
    for name, text, process in rows:
        pid = f" [dim]pid {pids[process]}[/]" if process in pids else ""
        say(f"  [bold]{name:<9}[/] {escape(text)}{pid}")
    say(f"[green]ready in {seconds:.1f} s[/]")
    say(f"  [bold]docs[/]      {url}/docs")
    say(f"  [bold]logs[/]      {escape(str(stack.logs))}")
    say(f"  [bold]try[/]       {escape(first_request(url, keyed=bool(settings.api_keys)))}")
    if settings.api_keys:
        say(f"  [bold]keys[/]      {len(settings.api_keys)} set")
    else:
        say("  [bold]keys[/]      none set (CLIP_QUEUE_API_KEYS): open to all on this machine, bound to loopback")
    for model, notice in NOTICES.items():
        if model in parse_models(settings.models):
            say(f"  [bold]note[/]      {escape(notice)}")
    say("  [bold]stop[/]      Ctrl-C")


def first_request(url: str, *, keyed: bool) -> str:
    """A command to paste into a shell."""
    body = {"subject": "dog", "subject_type": "text", "prompt": ["puppy", "banana"]}
    key = " -H 'Authorization: Bearer YOUR-KEY'" if keyed else ""
    return f"curl -s {url}/clip/compare -H 'Content-Type: application/json'{key} -d {shlex.quote(json.dumps(body))}"


@contextmanager
def stop_signals(hurry: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Catch Ctrl-C, SIGTERM and the terminal's closing; yields whether one came. ``hurry`` is called at the second."""
    came: list[int] = []  # a handler may interrupt anything: it takes no lock

    def handler(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            hurry()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield lambda: bool(came)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
