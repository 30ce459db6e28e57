"""``clip-queue embed``: the bar, the lines where there is no terminal, and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from clip_queue.bulk.run.planner import DryRun
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.report import Report
from clip_queue.cli.terminal import printable

LOST = 10  # shards that the report names of those that could not be done
EVERY = 5.0  # seconds between lines where there is no terminal

Show = Callable[[Progress], None]


@contextmanager
def shown(console: Console) -> Iterator[Show]:
    """A bar on a terminal, else a line every few seconds."""
    if not console.is_terminal:
        yield lines(console)
        return
    columns = (SpinnerColumn(), BarColumn(bar_width=None), TaskProgressColumn(), MofNCompleteColumn(separator=" / "))
    with Bar(*columns, TextColumn("{task.fields[text]}"), console=console, transient=True, expand=True) as bar:
        task = bar.add_task("", total=None, text="starting")

        def show(progress: Progress) -> None:
            done = progress.done + progress.failed
            bar.update(task, completed=done, total=progress.total, text=figures(progress))

        yield show


def lines(console: Console) -> Show:
    said = 0.0

    def show(progress: Progress) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= EVERY:
            said = now
            total = progress.total
            done = progress.done + progress.failed
            share = f" ({done / total:.0%})" if total else ""
            of = "?" if total is None else f"{total:,}"
            console.print(f"{done:,} of {of} rows{share}, {figures(progress)}", highlight=False, soft_wrap=True)

    return show


def figures(progress: Progress) -> str:
    """What stands beside the bar."""
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
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02.0f} s" if minutes else f"{seconds:.0f} s"


def tell(console: Console, report: Report, again: str) -> None:
    """The report; ``again`` is the command that resumes."""

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    mark = {0: "[green]✓[/]", 3: "[yellow]✓[/]"}.get(report.status, "[red]✗[/]")
    say(f"{mark} [bold]{report.rows:,}[/] rows embedded, {report.failed:,} failed, in {escape(report.output)}")
    if report.resumed:
        say(f"  {report.resumed:,} of them were there before")
    if report.seconds and report.rows + report.failed > report.resumed:
        limit = limited(report)
        say(f"  {report.rate:,.0f} rows/s, {duration(report.seconds)}{limit}")
    say(f"  [dim]model {escape(report.model)}, fingerprint {report.fingerprint}[/]")
    if report.reasons:
        table = Table("why", "rows", "for example", box=None, padding=(0, 2, 0, 2), header_style="dim")
        for code, reason in sorted(report.reasons.items(), key=lambda item: -item[1].rows):
            examples = "\n".join(f"{printable(path or '?')}: {printable(why)}" for path, why in reason.examples)
            table.add_row(code, f"{reason.rows:,}", escape(examples))
        console.print(table)
        say(f"  all of them, with their errors: {escape(report.output)}/errors")
    for shard, why in islice(report.lost.items(), LOST):
        say(f"[red]shard {shard} could not be done:[/] {escape(why)}")
    if len(report.lost) > LOST:
        say(f"[red]and {len(report.lost) - LOST:,} more shards[/]")
    if not report.finished:
        say(f"{report.complete:,} of {report.shards:,} shards are complete and stay. To go on:\n  {escape(again)}")


def limited(report: Report) -> str:
    if report.limit is None:
        return ""
    share = report.waited[report.limit] / max(1e-9, sum(report.waited.values()))
    return (
        f", limited by {'the forward pass' if report.limit == 'forward' else report.limit} ({share:.0%} of the waiting)"
    )


def tell_dry(console: Console, dry: DryRun) -> None:
    """What a run would do."""
    source = dry.source
    rows = "as many rows as the tars hold" if dry.rows is None else f"{dry.rows:,} rows"
    what = " and ".join(name for name, wanted in (("images", source.images), ("texts", source.texts)) if wanted)
    console.print(f"{source.format}: {rows} in {dry.shards:,} shards, {what} to embed", highlight=False, soft_wrap=True)
    for name, value in (("image column", source.image_column), ("text column", source.text_column)):
        if value:
            console.print(f"  {name}: {escape(value)}", highlight=False)
    if source.columns:
        columns = ", ".join(source.columns)
        console.print(f"  columns kept: image_path, caption, {escape(columns)}", highlight=False, soft_wrap=True)
    console.print(f"  first: {escape(', '.join(map(printable, dry.first)))}", highlight=False, soft_wrap=True)
    console.print("nothing was written (--dry-run)", highlight=False)
