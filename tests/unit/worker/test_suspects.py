"""Jobs that have lost a worker: a few at a time, or alone at the last attempt, and fresh jobs do not wait for them."""

from __future__ import annotations

import threading

import pytest

from clip_queue.shared import ops
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import State
from clip_queue.shared.lane import Lane
from clip_queue.worker.executor.executor import SUSPECTS
from clip_queue.worker.executor.suspects import Suspects
from tests.harness import wait_for
from tests.unit.worker.executor_parts import Parts
from tests.unit.worker.models import MODEL

LANES = (Lane.INTERACTIVE, Lane.BACKGROUND)


def lost(parts: Parts, job_id: str, times: int) -> None:
    parts.store.client.hset(f"cq:job:{job_id}", "attempts", times)


@pytest.mark.parametrize("lane", LANES)
def test_suspects_with_attempts_left_run_a_few_at_a_time_and_all_end(parts: Parts, lane: Lane) -> None:
    jobs = [parts.accept("x", lane=lane) for _ in range(3 * SUSPECTS)]
    for job in jobs:
        lost(parts, job, 1)
    most, execute = 0, parts.store.execute

    def watched(op: ops.Op[object]) -> object:
        nonlocal most
        most = max(most, len(parts.held()))
        return execute(op)

    parts.store.execute = watched  # type: ignore[method-assign, assignment]
    parts.deliver(*jobs, lane=lane)
    wait_for(lambda: all(parts.look(job).state is State.SUCCEEDED for job in jobs), 20)
    assert most <= SUSPECTS
    assert {parts.look(job).attempts for job in jobs} == {2}


@pytest.mark.parametrize("lane", LANES)
def test_fresh_jobs_do_not_wait_for_suspects(parts: Parts, lane: Lane) -> None:
    suspects = [parts.accept("x" * n, lane=lane) for n in range(1, 6)]
    for job in suspects:
        lost(parts, job, 2)
    with parts.executor._suspect_runs:  # one of them runs, for as long as it likes
        fresh = [parts.accept("y", lane=lane) for _ in range(3)]
        parts.deliver(*suspects, *fresh, lane=lane)  # returns
        assert [parts.look(job).state for job in fresh] == [State.SUCCEEDED] * 3
        assert [parts.look(job).state for job in suspects] == [State.QUEUED] * 5
    wait_for(lambda: all(parts.look(job).state is State.SUCCEEDED for job in suspects), 20)


def test_a_peek_takes_a_group_or_one_last_attempt(parts: Parts) -> None:
    jobs = [parts.accept("x", lane=Lane.BACKGROUND) for _ in range(6)]
    for place, (job, times) in enumerate(zip(jobs, (0, 1, 2, 1, 0, 2), strict=True)):
        lost(parts, job, times)
        # Jobs of one millisecond stand in any order.
        parts.store.client.zadd(f"cq:queued:{MODEL}:{Lane.BACKGROUND}", {job: place})

    def suspects() -> list[str]:
        return parts.store.execute(ops.peek_suspects(MODEL, Lane.BACKGROUND, 3, 16, 256))

    assert parts.store.execute(ops.peek_queued(MODEL, Lane.BACKGROUND, 64, 256)).job_ids == [jobs[0], jobs[4]]
    assert suspects() == [jobs[1], jobs[3]]
    for job in (jobs[1], jobs[3]):
        parts.store.execute(ops.cancel(job, ""))
    assert suspects() == [jobs[2]]
    assert parts.store.execute(ops.peek_suspects(MODEL, Lane.BACKGROUND, 2, 16, 256)) == [jobs[2]]


def test_fresh_jobs_behind_many_suspects_are_found(parts: Parts) -> None:
    for _ in range(120):
        lost(parts, parts.accept("x", lane=Lane.BACKGROUND), 2)
    fresh = parts.accept("y", lane=Lane.BACKGROUND)
    peeked = parts.store.execute(ops.peek_queued(MODEL, Lane.BACKGROUND, 64, 256))
    assert (peeked.job_ids, peeked.suspects) == ([fresh], 120)


def test_interactive_suspects_go_first_and_a_store_that_is_away_ends_nothing() -> None:
    ran: list[tuple[str, Lane]] = []
    begun, go_on = threading.Event(), threading.Event()
    died: list[BaseException] = []

    def run(model: str, lane: Lane) -> bool:
        ran.append((model, lane))
        begun.set()
        go_on.wait(10)
        if len(ran) == 1:
            raise Unavailable("away")
        return False

    suspects = Suspects(run, died.append)
    suspects.notice("m", Lane.BULK)
    assert begun.wait(5)
    suspects.notice("m", Lane.BACKGROUND)
    suspects.notice("m", Lane.INTERACTIVE)
    go_on.set()
    wait_for(lambda: len(ran) == 3, 5)
    assert ran == [("m", Lane.BULK), ("m", Lane.INTERACTIVE), ("m", Lane.BACKGROUND)]
    suspects.stop()
    suspects.join(5)
    assert not died
    suspects.notice("m", Lane.BULK)
    assert len(ran) == 3


def test_an_error_of_the_thread_ends_the_process() -> None:
    died: list[BaseException] = []

    def run(model: str, lane: Lane) -> bool:
        raise RuntimeError("a bug")

    suspects = Suspects(run, died.append)
    suspects.notice("m", Lane.BULK)
    wait_for(lambda: died, 5)
    assert str(died[0]) == "a bug"


def test_a_worker_that_drains_begins_no_suspects(parts: Parts) -> None:
    job = parts.accept("x")
    lost(parts, job, 2)
    parts.executor.draining.set()
    parts.deliver(job)
    parts.executor.suspects.stop()
    parts.executor.suspects.join(5)
    assert parts.look(job).state is State.QUEUED
