"""A run's command while the source is away."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from clip_queue.bulk.run import runner
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.runner import AWAY, PAUSE, Runner, Underway
from clip_queue.shared.job import Job, Kind, Lane, State
from clip_queue.sources.source import SourceAway


class Run(Runner):
    """A runner of one shard, whose job is as the test says."""

    def __init__(self) -> None:
        self.job = Job(Kind.EMBED_SHARD, "m", 10, Lane.BULK, state=State.RUNNING)
        self.progress = Progress(shards=1, rows=10)
        self.submitted: list[tuple[int, int]] = []
        self._underway = {0: Underway(0, self.job.id, tries=2)}
        self._away_since = 0.0
        self._told_to_stop = lambda: False
        self._output = self._plan = None  # type: ignore[assignment]
        self._store: Any = SimpleNamespace(run=lambda _: (SimpleNamespace(job=self.job), None))

    def _submit(self, shard: int, tries: int = 1) -> None:
        self.submitted.append((shard, tries))
        self._underway[shard] = Underway(shard, self.job.id, tries)

    def look(self, state: State, done: int = 0, failed: int = 0) -> None:
        self.job.state, self.job.done, self.job.failed = state, done, failed
        self.job.error = SourceAway("not now").to_wire() if state is State.FAILED else None
        self._look()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that the test moves."""
    it = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: it.now)
    monkeypatch.setattr(runner, "whole", lambda *_: None)
    return it


def test_a_shard_whose_source_is_away_is_tried_again_after_a_pause(clock: Any) -> None:
    run = Run()
    run.look(State.FAILED, done=4)
    assert run.progress.away
    assert run.progress.done == 0, "nothing of it is kept"
    run.look(State.FAILED)
    assert run.submitted == []
    clock.now += PAUSE
    run.look(State.FAILED)
    assert run.submitted == [(0, 2)], "it has not lost a worker"


def test_the_run_ends_once_the_source_has_been_away_too_long(clock: Any) -> None:
    run = Run()

    def wait() -> None:
        while clock.now < 1000 + 2 * AWAY:
            run.look(State.FAILED)
            clock.now += PAUSE

    with pytest.raises(SourceAway, match="the source has been away for 5 minutes: not now"):
        wait()
    assert AWAY < clock.now - 1000 <= AWAY + 3 * PAUSE


@pytest.mark.parametrize(("done", "failed"), [(1, 0), (0, 1)])
def test_a_source_that_gives_rows_is_not_away_however_long_a_shard_takes(clock: Any, done: int, failed: int) -> None:
    run = Run()
    for _ in range(5):
        run.look(State.FAILED)
        clock.now += AWAY
        run.look(State.FAILED)  # submitted again
        run.look(State.RUNNING, done, failed)
        assert not run.progress.away
        clock.now += AWAY
