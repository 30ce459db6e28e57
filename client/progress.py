"""A bar of progress where there is a terminal, and Rich to draw it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager


@contextmanager
def bar(items: object, most: int, what: str, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while the context lasts. What is yielded is told how many items are done.

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
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
