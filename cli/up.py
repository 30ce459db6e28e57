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

from clip_queue.cli.terminal import print_line
from clip_queue.shared.models import NOTICES, parse_models
from clip_queue.shared.settings import Settings
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.stack.machine import StackError, is_loopback
from clip_queue.version import __version__

START_TIMEOUT = 3600.0  # seconds; a first start may download gigabytes of weights
POLL_INTERVAL = 0.1  # seconds between checks whether to stop


def up(
    console: Console,
    errors: Console,
    settings: Settings,
    *,
    host: str,
    port: int,
    workers: int | None,
    serves: list[str] | None = None,
    apis: int | None = None,
    redis_url: str | None,
    make_stack: Callable[..., EmbeddedStack] = EmbeddedStack,
) -> None:
    """Serve until Ctrl-C or SIGTERM. At the second one the processes are killed at once.

    Args:
        console: gets what runs where.
        errors: gets a line about each thing that goes wrong, and about the log that cannot be written.
        host: the address that the API listens on.
        port: the port of the API.
        workers: number of workers; None: one a GPU, or one.
        serves: the model of each worker; None: each has all.
        apis: number of API processes; None: one for four cores.
        redis_url: a Redis to use; None: start a Valkey.
        make_stack: makes the service.

    Raises:
        StackError: the service cannot start, or cannot go on.
    """
    if not is_loopback(host) and not settings.api_keys:
        raise StackError(
            f"no API key is set, so anyone who reaches {host} could use this service: set CLIP_QUEUE_API_KEYS to one "
            "key or more, or listen on 127.0.0.1"
        )
    begin = time.monotonic()
    stack = make_stack(
        settings,
        workers=workers,
        serves=serves,
        apis=apis,
        host=host,
        port=port,
        redis_url=redis_url,
        data_dir=settings.data_dir,
        say=lambda line: print_line(errors, f"[yellow]{escape(line)}[/]"),
    )
    with stop_signals(stack.hurry) as should_stop:
        try:
            models = escape(", ".join(parse_models(settings.models)))
            print_line(console, f"[bold]clip-queue {__version__}[/]: starting {models}")
            stack.start(timeout=START_TIMEOUT, should_stop=should_stop)
            print_overview(console, stack, time.monotonic() - begin)
            while not should_stop():
                if not stack.alive:
                    raise StackError(f"the supervisor itself failed; the logs are in {stack.logs}")
                time.sleep(POLL_INTERVAL)
        except StackError:
            if not should_stop():
                raise
        finally:
            if should_stop():
                print_line(console, "stopping [dim](once more: kill)[/]")
            stack.stop()
    print_line(console, "stopped")


def print_overview(console: Console, stack: EmbeddedStack, seconds: float) -> None:
    """Print what runs where, and a first request. ``seconds``: how long the start took."""
    settings, url, pids = stack.settings, stack.api_url, stack.pids
    rows = []
    if stack.embedded:
        rows.append(("valkey", f"on 127.0.0.1, append-only file in {stack.data_dir / 'valkey'}", "valkey"))
    else:
        rows.append(("redis", "the one given", ""))
    for number in range(1, stack.workers + 1):
        gpu = stack.gpu(number)
        place = "" if gpu is None else f" on GPU {gpu}"
        served = ", ".join(parse_models(stack.models(number)))
        rows.append((f"worker-{number}", f"serves {served}{place}", f"worker-{number}"))
    rows += [(name, url, name) for name in stack.apis.names]
    for name, text, process in rows:
        pid = f" [dim]pid {pids[process]}[/]" if process in pids else ""
        print_line(console, f"  [bold]{name:<9}[/] {escape(text)}{pid}")
    print_line(console, f"[green]ready in {seconds:.1f} s[/]")
    if settings.page:
        print_line(console, f"  [bold]open[/]      {url}/")
    print_line(console, f"  [bold]docs[/]      {url}/docs")
    print_line(console, f"  [bold]logs[/]      {escape(str(stack.logs))}")
    print_line(console, f"  [bold]try[/]       {escape(first_request(url, keyed=bool(settings.api_keys)))}")
    if settings.api_keys:
        print_line(console, f"  [bold]keys[/]      {len(settings.api_keys)} set")
    else:
        print_line(
            console,
            "  [bold]keys[/]      none set (CLIP_QUEUE_API_KEYS): open to all on this machine, bound to loopback",
        )
    for model, notice in NOTICES.items():
        if model in parse_models(settings.models):
            print_line(console, f"  [bold]note[/]      {escape(notice)}")
    print_line(console, "  [bold]stop[/]      Ctrl-C")


def first_request(url: str, *, keyed: bool) -> str:
    """A shell command that sends a request. ``keyed``: whether the API asks for a key."""
    body = {"subject": "dog", "subject_type": "text", "prompt": ["puppy", "banana"]}
    key = " -H 'Authorization: Bearer YOUR-KEY'" if keyed else ""
    return f"curl -s {url}/clip/compare -H 'Content-Type: application/json'{key} -d {shlex.quote(json.dumps(body))}"


@contextmanager
def stop_signals(hurry: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Catch SIGINT, SIGTERM and SIGHUP. Yields a function that says if one came. The second one calls ``hurry``.

    A SIGHUP that is ignored stays so: the command was started by ``nohup``.
    """
    came: list[int] = []  # the handler must not take a lock: it can interrupt any code

    def handler(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            hurry()

    caught = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in caught}
    try:
        yield lambda: bool(came)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
