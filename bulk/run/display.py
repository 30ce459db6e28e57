"""The progress of a run, shown: a bar on a terminal and in a notebook, else a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from clip_queue.bulk.run.progress import Progress

LINE_INTERVAL = 5.0  # seconds between two lines where there is no bar

Show = Callable[[Progress], None]
"""Shows the progress; called several times a second."""

Say = Callable[[str], None]
"""Says what happens, a line at a time."""


@contextmanager
def display(show: Show | bool | None, say: Say | None) -> Iterator[tuple[Show, Say]]:
    """How a run shows its progress and says what happens, as the caller of :func:`clip_queue.embed` wants it.

    Args:
        show: a function; True: a bar, or lines where there can be none; False: nothing; None: True in a notebook.
        say: a function; None: printed where the progress is shown.
    """
    if callable(show):
        yield show, say or ignore
        return
    console = Console()
    if not (console.is_jupyter if show is None else show):
        yield ignore, say or ignore
        return
    with progress_display(console) as shown:
        yield shown, say or (lambda line: console.print(escape(line), style="yellow", soft_wrap=True, highlight=False))


def ignore(*_: object) -> None:
    """Where nobody wants to know."""


@contextmanager
def progress_display(console: Console) -> Iterator[Show]:
    """A progress bar on a terminal or in a notebook, else a line every few seconds."""
    if not (console.is_terminal or (console.is_jupyter and find_spec("ipywidgets"))):  # a notebook's bar is a widget
        yield progress_lines(console)
        return
    columns = (SpinnerColumn(), BarColumn(bar_width=None), TaskProgressColumn(), MofNCompleteColumn(separator=" / "))
    with Bar(*columns, TextColumn("{task.fields[text]}"), console=console, transient=True, expand=True) as bar:
        task = bar.add_task("", total=None, text="starting")

        def show(progress: Progress) -> None:
            done = progress.done + progress.failed
            bar.update(task, completed=done, total=progress.total, text=progress_text(progress))

        yield show


def progress_lines(console: Console, now: Callable[[], float] = time.monotonic) -> Show:
    """Prints a line every :data:`LINE_INTERVAL` by the clock ``now``, in seconds."""
    last = float("-inf")

    def show(progress: Progress) -> None:
        nonlocal last
        if now() - last >= LINE_INTERVAL:
            last = now()
            total = progress.total
            done = progress.done + progress.failed
            share = f" ({done / total:.0%})" if total else ""
            of = "?" if total is None else f"{total:,}"
            line = f"{done:,} of {of} rows{share}, {progress_text(progress)}"
            console.print(line, soft_wrap=True, highlight=False)

    return show


def progress_text(progress: Progress) -> str:
    """Speed, time left, failed rows and workers, in a line."""
    numbers = progress.to_json()
    parts = [f"{numbers['rows_per_s']:,.0f} rows/s"]
    if numbers["eta_s"] is not None:
        parts.append(f"{duration(numbers['eta_s'])} left")
    if progress.away:
        parts.append("the source does not answer, waiting for it")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if numbers["busy"] is not None:
        parts.append(f"{progress.device or 'model'} {numbers['busy']:.0%} busy")
    parts.append(
        f"{progress.workers} worker{'' if progress.workers == 1 else 's'}" if progress.workers else "no worker alive"
    )
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A number of seconds in hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02.0f} s" if minutes else f"{seconds:.0f} s"
