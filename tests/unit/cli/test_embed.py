"""What ``clip-queue embed`` prints while it runs, at its end, and for a dry run."""

from __future__ import annotations

import pytest

from clip_queue.bulk.run.dry_run import DryRun
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.report import Reason, Report
from clip_queue.cli.embed import (
    LINE_INTERVAL,
    MAX_LOST,
    duration,
    print_dry_run,
    print_report,
    progress_display,
    progress_lines,
    progress_text,
)
from clip_queue.sources.source import Source
from tests.unit.cli.printing import console, printed


def report_text(report: Report) -> str:
    out = console()
    print_report(out, report, "clip-queue embed in out")
    return printed(out)


# Progress


def test_the_text_has_speed_workers_and_whatever_is_wrong() -> None:
    clock = 0.0
    progress = Progress(shards=2, rows=20, now=lambda: clock)
    assert progress_text(progress) == "0 rows/s, no worker alive"
    progress.workers, progress.device, progress.busy = 2, "cpu", 0.5
    clock = 2.0
    progress.underway = [(8, 2)]
    progress.away = True
    text = progress_text(progress)
    assert text.startswith("5 rows/s, 2 s left, the source does not answer, waiting for it, 2 failed, cpu 50% busy")
    assert text.endswith(", 2 workers")
    progress.workers, progress.away = 1, False
    assert progress_text(progress).endswith(", 1 worker")
    assert progress.to_json()["source_away"] is False


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_a_terminal_there_is_a_line_every_few_seconds() -> None:
    out, clock = console(), 100.0
    show = progress_lines(out, now=lambda: clock)
    progress = Progress(shards=2, rows=20, now=lambda: clock)
    show(progress)
    clock += LINE_INTERVAL - 0.1
    show(progress)
    progress.underway = [(8, 2)]
    clock += 0.2
    show(progress)
    lines = printed(out).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("0 of 20 rows (0%), ")
    assert lines[1].startswith("10 of 20 rows (50%), ")


def test_of_tars_the_number_of_rows_is_not_known_at_first() -> None:
    out = console()
    progress_lines(out)(Progress(shards=2, rows=None))
    assert printed(out).startswith("0 of ? rows, ")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_a_bar_and_a_log_has_lines(terminal: bool) -> None:
    out = console(terminal=terminal)
    progress = Progress(shards=2, rows=20)
    progress.underway = [(8, 2)]
    with progress_display(out) as show:
        show(progress)
    assert ("10 / 20" if terminal else "10 of 20 rows (50%)") in printed(out)


# The report


def test_a_finished_run() -> None:
    report = Report("/out", "m", "f1", shards=2, complete=2, rows=1000, seconds=10)
    report.waited = {"reading": 1.0, "decoding": 1.0, "forward": 2.0}
    assert report_text(report).splitlines() == [
        "✓ 1,000 rows embedded, 0 failed, in /out",
        "  100 rows/s, 10 s, limited by the forward pass (50% of the waiting)",
        "  model m, fingerprint f1",
    ]


def test_a_run_that_was_resumed_and_stopped_has_the_command_that_goes_on() -> None:
    report = Report("/out", "m", "f", shards=9, complete=2, rows=500, resumed=250, seconds=10, stopped=True)
    report.waited = {"reading": 3.0, "decoding": 1.0, "forward": 0.0}
    assert report_text(report).splitlines() == [
        "✗ 500 rows embedded, 0 failed, in /out",
        "  250 of them were there before",
        "  25 rows/s, 10 s, limited by reading (75% of the waiting)",
        "  model m, fingerprint f",
        "2 of 9 shards are complete and stay. To go on:",
        "  clip-queue embed in out",
    ]


def test_a_report_of_a_run_that_did_nothing_has_no_speed() -> None:
    report = Report("/out", "m", "f", shards=1, complete=1, rows=5, resumed=5, seconds=10)
    assert "rows/s" not in report_text(report)
    report.resumed = 0
    assert "0 rows/s, 10 s" in report_text(report)
    assert "limited" not in report_text(report)


def test_reasons_come_with_examples_the_most_frequent_first_and_control_characters_are_escaped() -> None:
    report = Report("/out", "m", "f", shards=1, complete=1, rows=5, failed=3)
    report.reasons = {
        "bad_image": Reason(1, [("a\x1b[31m\n.jpg", "It is [bold]broken[/].")]),
        "text_too_long": Reason(2, [("b.jpg", "long"), (None, "longer")]),
    }
    text = report_text(report)
    assert text.index("text_too_long") < text.index("bad_image")
    assert "a\\x1b[31m\\n.jpg: It is [bold]broken[/]." in text
    assert "?: longer" in text
    assert "all of them, with their errors: /out/errors" in text


def test_a_finished_run_with_failures_names_the_flag_that_tries_them_again() -> None:
    report = Report("/out", "m", "f", shards=1, complete=1, rows=5, failed=3, reasons={"unreachable": Reason(3, [])})
    said = "to try them again, as after a network was down: the same command with --retry-failed"
    assert said in report_text(report)
    report.complete = 0
    assert said not in report_text(report), "the plain command goes on first"


def test_a_report_says_what_was_revised() -> None:
    report = Report(
        "/out", "m", "f", shards=1, complete=1, rows=5, resumed=5, revised="1 file is new (a.png): 1 is new"
    )
    assert report_text(report).splitlines()[1] == "  1 file is new (a.png): 1 is new"


def test_a_dry_run_of_an_update_says_what_it_would_do() -> None:
    out = console()
    print_dry_run(out, DryRun(Source("/in", "folder"), 1, 3, [], "1 file is new (a.png): 1 is new"))
    assert printed(out) == "1 file is new (a.png): 1 is new\nnothing was written (--dry-run)\n"


def test_only_a_few_of_many_shards_that_could_not_be_done_are_named() -> None:
    report = Report("/out", "m", "f", shards=1000, lost={n: f"why {n}" for n in range(1000)})
    lines = report_text(report).splitlines()
    assert sum("could not be done" in line for line in lines) == MAX_LOST
    assert "shard 3 could not be done: why 3" in lines
    assert "and 990 more shards" in lines
    assert lines[-1] == "  clip-queue embed in out"
    few = report_text(Report("/out", "m", "f", shards=3, lost={1: "why"}))
    assert "more shards" not in few


# A dry run


def test_a_dry_run_prints_columns_and_the_first_files() -> None:
    source = Source(
        "/in.parquet",
        "parquet",
        images=True,
        texts=True,
        image_column="url",
        text_column="words",
        columns={"a": "string", "b": "int64"},
    )
    out = console()
    print_dry_run(out, DryRun(source, shards=3, rows=2500, first=["in.parquet", "x\n"]))
    assert printed(out).splitlines() == [
        "parquet: 2,500 rows in 3 shards",
        "  to embed: images and texts: images from `url`, texts from `words`",
        "  columns kept: image_path, caption, a, b",
        "  first: in.parquet, x\\n",
        "nothing was written (--dry-run)",
    ]


def test_a_dry_run_of_tars_does_not_know_the_number_of_rows() -> None:
    out = console()
    print_dry_run(out, DryRun(Source("/in.tar", "webdataset", images=True), shards=1, rows=None, first=["in.tar"]))
    assert printed(out).splitlines()[:2] == [
        "webdataset: as many rows as the archives hold in 1 shards",
        "  to embed: images only",
    ]
