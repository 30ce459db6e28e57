"""What ``clip-queue embed`` says while it runs and at its end."""

from __future__ import annotations

import io

from rich.console import Console

from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.report import Reason, Report
from clip_queue.cli.embed import LOST, figures, tell


def told(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200)
    tell(console, report, "clip-queue embed in out")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_source_that_is_away_is_said_beside_the_figures() -> None:
    progress = Progress(shards=2, rows=20)
    waiting = "the source does not answer, waiting for it"
    assert waiting not in figures(progress)
    progress.away = True
    assert waiting in figures(progress)
    assert progress.to_json()["source_away"] is True


def test_reasons_come_with_examples_the_most_frequent_first_and_names_do_no_harm() -> None:
    report = Report("/out", "m", "f", shards=1, complete=1, rows=5, failed=3)
    report.reasons = {
        "bad_image": Reason(1, [("a\x1b[31m\n.jpg", "It is [bold]broken[/].")]),
        "text_too_long": Reason(2, [("b.jpg", "long"), (None, "longer")]),
    }
    said = told(report)
    assert said.index("text_too_long") < said.index("bad_image")
    assert "a\\x1b[31m\\n.jpg: It is [bold]broken[/]." in said
    assert "?: longer" in said
    assert "/out/errors" in said


def test_a_few_of_many_shards_that_could_not_be_done_are_named() -> None:
    report = Report("/out", "m", "f", shards=1000, lost={n: f"why {n}" for n in range(1000)})
    lines = told(report).splitlines()
    assert sum("could not be done" in line for line in lines) == LOST
    assert "and 990 more shards" in lines
    assert lines[-1] == "  clip-queue embed in out"
    few = told(Report("/out", "m", "f", shards=3, lost={1: "why"}))
    assert "more shards" not in few
