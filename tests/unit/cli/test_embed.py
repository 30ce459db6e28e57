"""What ``clip-queue embed`` prints at its end, and for a dry run."""

from __future__ import annotations

from clip_queue.bulk.run.dry_run import DryRun
from clip_queue.bulk.run.part import Part
from clip_queue.bulk.run.report import Reason, Report
from clip_queue.cli.embed import (
    MAX_LOST,
    MAX_PARTS,
    print_dry_run,
    print_report,
)
from clip_queue.sources.source import Source
from tests.unit.cli.printing import console, printed


def report_text(report: Report) -> str:
    out = console()
    print_report(out, report, "clip-queue embed in out")
    return printed(out)


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


def test_the_report_of_a_part_counts_its_own_rows_and_names_the_parts_that_are_missing() -> None:
    report = Report("/out", "m", "f", shards=2, complete=2, rows=1000, part="3/16")
    report.missing, report.missing_shards = ["4/16", "7/16"], 3
    lines = report_text(report).splitlines()
    assert lines[0] == "✓ 1,000 rows of part 3/16 embedded, 0 failed, in /out"
    assert lines[-1] == "parts 4/16, 7/16 are missing still, with 3 shards together"
    report.missing, report.missing_shards = ["4/16"], 1
    assert report_text(report).splitlines()[-1] == "part 4/16 is missing still, with 1 shard together"
    report.missing = [f"{n}/99" for n in range(1, 99)]
    assert f"{MAX_PARTS}/99, … are missing" in report_text(report)
    report.missing, report.missing_shards = [], 0
    assert report_text(report).splitlines()[-1] == "all parts are there: the output is complete"


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


def test_a_dry_run_of_a_part_says_how_much_it_has() -> None:
    out = console()
    print_dry_run(out, DryRun(Source("/in.txt", "text", texts=True), shards=10, rows=100, first=[]), Part(3, 4))
    assert "  part 3/4 has 2 of the shards" in printed(out).splitlines()


def test_a_dry_run_of_tars_does_not_know_the_number_of_rows() -> None:
    out = console()
    print_dry_run(out, DryRun(Source("/in.tar", "webdataset", images=True), shards=1, rows=None, first=["in.tar"]))
    assert printed(out).splitlines()[:2] == [
        "webdataset: as many rows as the archives hold in 1 shards",
        "  to embed: images only",
    ]
