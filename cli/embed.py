"""``clip-queue embed``: the report, and the result of a dry run."""

from __future__ import annotations

from itertools import islice

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clip_queue.bulk.run.display import duration
from clip_queue.bulk.run.dry_run import DryRun
from clip_queue.bulk.run.part import WHOLE, Part
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.scope import passed_lines, scope_text
from clip_queue.cli.terminal import print_line, printable

MAX_PARTS = 16  # most parts that are missing and are named in the report
MAX_LOST = 10  # most shards that could not be done and are named in the report


def print_report(console: Console, report: Report, again: str) -> None:
    """Print the report of a run. ``again`` is the command that resumes it."""
    mark = {0: "[green]✓[/]", 3: "[yellow]✓[/]"}.get(report.status, "[red]✗[/]")
    of = f" of part {report.part}" if report.part else ""
    print_line(
        console,
        f"{mark} [bold]{report.rows:,}[/] rows{of} embedded, {report.failed:,} failed, in {escape(report.output)}",
    )
    if report.halves:
        print_line(
            console, f"  {report.halves:,} of them by half: zeros stand for an image or a text that was at fault"
        )
    if report.cut:
        print_line(console, f"  {report.cut:,} of their texts were cut to what the model takes")
    if report.revised:
        print_line(console, f"  {escape(printable(report.revised))}")
    if report.resumed:
        print_line(console, f"  {report.resumed:,} of them were there before")
    for line in report.scope():
        print_line(console, f"  {escape(printable(line))}")
    if report.seconds and report.rows + report.failed > report.resumed:
        print_line(console, f"  {report.rate:,.0f} rows/s, {duration(report.seconds)}{limit_text(report)}")
    print_line(console, f"  [dim]model {escape(report.model)}, fingerprint {report.fingerprint}[/]")
    if report.reasons:
        table = Table("why", "rows", "for example", box=None, padding=(0, 2, 0, 2), header_style="dim")
        for code, reason in sorted(report.reasons.items(), key=lambda item: -item[1].rows):
            examples = "\n".join(f"{printable(path or '?')}: {printable(why)}" for path, why in reason.examples)
            table.add_row(code, f"{reason.rows:,}", escape(examples))
        console.print(table)
        places = (["errors"] if report.failed else []) + (["metadata, column error"] if report.halves else [])
        where = " and ".join(f"{report.output}/{place}" for place in places)
        print_line(console, f"  all of them, with their errors: {escape(where)}")
        if report.finished:
            print_line(
                console, "  to try them again, as after a network was down: the same command with --retry-failed"
            )
    for shard, why in islice(report.lost.items(), MAX_LOST):
        print_line(console, f"[red]shard {shard} could not be done:[/] {escape(why)}")
    if len(report.lost) > MAX_LOST:
        print_line(console, f"[red]and {len(report.lost) - MAX_LOST:,} more shards[/]")
    if report.part and not report.stopped:
        print_line(console, escape(parts_text(report)))
    if not report.finished:
        print_line(
            console,
            f"{report.complete:,} of {report.shards:,} shards are complete and stay. To go on:\n  {escape(again)}",
        )


def parts_text(report: Report) -> str:
    """Which parts of the output are missing still."""
    if not report.missing:
        return "all parts are there: the output is complete"
    one = len(report.missing) == 1
    named = ", ".join(report.missing[:MAX_PARTS]) + (", …" if len(report.missing) > MAX_PARTS else "")
    shards = f"{report.missing_shards:,} shard{'' if report.missing_shards == 1 else 's'}"
    return f"part{'' if one else 's'} {named} {'is' if one else 'are'} missing still, with {shards} together"


def limit_text(report: Report) -> str:
    """The stage that limited the speed, or nothing if it is not known."""
    if report.limit is None:
        return ""
    share = report.waited[report.limit] / max(1e-9, sum(report.waited.values()))
    stage = "the forward pass" if report.limit == "forward" else report.limit
    return f", limited by {stage} ({share:.0%} of the waiting)"


def print_dry_run(console: Console, dry: DryRun, part: Part = WHOLE) -> None:
    """Print what a run would do, or a part of it."""
    source = dry.source
    if dry.revised:
        print_line(console, escape(printable(dry.revised)))
        print_line(console, "nothing was written (--dry-run)")
        return
    unknown = (
        "as many rows as the archives hold"
        if source.format in ("webdataset", "zip")
        else "as many rows as there are images"
    )
    rows = unknown if dry.rows is None else f"{dry.rows:,} rows"
    print_line(console, f"{source.format}: {rows} in {dry.shards:,} shards")
    if part != WHOLE:
        print_line(console, f"  part {part} has {len(part.shards(dry.shards)):,} of the shards")
    for line in (f"to embed: {scope_text(source)}", *passed_lines(source, dry.rows)):
        print_line(console, f"  {escape(printable(line))}")
    if source.columns:
        columns = ", ".join(source.columns)
        print_line(console, f"  columns kept: image_path, caption, {escape(columns)}")
    print_line(console, f"  first: {escape(', '.join(map(printable, dry.first)))}")
    print_line(console, "nothing was written (--dry-run)")
