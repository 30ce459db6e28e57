"""A bar of progress where there is a terminal, and Rich to draw it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager


@contextmanager
def bar(items: object, most: int, what: str, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while the context lasts. What is yielded is told how many items are done so far.

    There is none if ``items`` fit in one request (``most``), or cannot be counted and so may.
    """
    total = len(items) if isinstance(items, Sized) else 0
    if not show or total <= most or not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda _: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    shown = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    with shown as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
