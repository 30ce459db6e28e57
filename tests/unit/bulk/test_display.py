"""How the progress of a run is shown: by a bar, by lines, in a notebook, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest
from rich.console import Console

from clip_queue.bulk.run import display as displays
from clip_queue.bulk.run.display import (
    LINE_INTERVAL,
    display,
    duration,
    ignore,
    progress_display,
    progress_lines,
    progress_text,
)
from clip_queue.bulk.run.progress import Progress
from tests.unit.cli.printing import console, printed


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


# What the caller wants


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Console:
    """Where a run would print."""
    out = console()
    monkeypatch.setattr(displays, "Console", lambda: out)
    return out


@pytest.mark.parametrize(("show", "notebook"), [(False, False), (False, True), (None, False)])
def test_nothing_is_shown_unless_it_is_wanted_or_in_a_notebook(
    here: Console, show: bool | None, notebook: bool
) -> None:
    here.is_jupyter = notebook
    with display(show, None) as (shown, said):
        shown(Progress(shards=2, rows=20))
        said("what happens")
    assert printed(here) == ""


def test_lines_are_shown_where_there_can_be_no_bar(here: Console) -> None:
    with display(True, None) as (shown, said):
        shown(Progress(shards=2, rows=20))
        said("what [happens]")
    assert printed(here).startswith("0 of 20 rows (0%), ")
    assert "what [happens]" in printed(here)


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_has_a_bar_if_it_has_widgets(here: Console, widgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    here.is_jupyter = True
    bars: list[Console] = []

    @contextmanager
    def bar(*_: object, console: Console, **__: object) -> Iterator[Any]:
        bars.append(console)
        yield Mock()

    monkeypatch.setattr(displays, "Bar", bar)
    monkeypatch.setattr(displays, "find_spec", lambda name: widgets or None)
    with display(None, None) as (shown, said):
        assert said is not ignore
        assert shown is not ignore
    assert bars == [here] * widgets


def test_functions_of_the_caller_s_own_are_taken_as_they_are(here: Console) -> None:
    def show(progress: Progress) -> None: ...

    with display(show, None) as (shown, said):
        assert (shown, said) == (show, ignore)
    lines: list[str] = []
    with display(True, lines.append) as (_, said):
        said("a")
    assert (lines, printed(here)) == (["a"], "")
