"""Job handlers in the executor: progress, draining, missing handlers, last attempts."""

from __future__ import annotations

from typing import Any

import pytest

from clip_queue.shared.job import Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.worker.executor.executor import concurrency_of
from tests.harness import wait_for
from tests.unit.worker.executor_parts import Handler, Parts, shard


def test_a_handler_does_its_job_and_completes_it(parts: Parts, handlers: list[Handler]) -> None:
    job = shard(parts)
    thread = parts.in_thread(job, lane=Lane.BULK)
    wait_for(lambda: handlers, 5)
    handlers[0].done = 3
    assert parts.executor.leases.progress() == [(job, 3, 0)]
    handlers[0].finish.set()
    thread.join(5)
    ended = parts.look(job)
    assert (ended.state, ended.done, ended.failed, parts.held()) == (State.SUCCEEDED, 7, 1, [])


def test_a_worker_that_drains_abandons_its_handlers_and_gives_their_jobs_back(
    parts: Parts, handlers: list[Handler]
) -> None:
    jobs = [shard(parts), shard(parts)]
    thread = parts.in_thread(jobs[0], lane=Lane.BULK)
    wait_for(lambda: handlers, 5)
    parts.executor.draining.set()
    parts.executor.abandon_handlers()
    thread.join(5)
    begun = handlers[0].job.id  # the second one if both were accepted in the same millisecond
    assert (parts.executor.leases.to_release(), len(handlers)) == ([begun], 1)
    (waiting,) = set(jobs) - {begun}
    assert parts.look(waiting).state is State.QUEUED


def test_draining_leaves_requests_time_to_finish(parts: Parts) -> None:
    parts.model.gate.clear()
    job = parts.accept("a")
    thread = parts.in_thread(job)
    wait_for(lambda: parts.model.batches, 5)
    parts.executor.draining.set()
    parts.executor.abandon_handlers()
    parts.model.gate.set()
    thread.join(5)
    assert parts.look(job).state is State.SUCCEEDED


@pytest.mark.parametrize("gone", [True, False])
def test_a_job_without_a_handler_or_inputs_fails_and_says_what_to_install(
    parts: Parts, handlers: list[Handler], gone: bool
) -> None:
    job = shard(parts)
    if gone:
        parts.store.client.delete(f"cq:in:{job}")
    else:
        parts.executor.handlers = {}
    parts.deliver(job, lane=Lane.BULK)
    error = parts.look(job).error
    assert error is not None
    assert error["message"] == "This worker cannot do embed_shard: pip install 'clip-queue[serve]' there."
    assert not handlers


def test_a_handler_on_its_last_attempt_runs_alone(parts: Parts, handlers: list[Handler]) -> None:
    jobs = [shard(parts) for _ in range(2)]
    for job in jobs:
        parts.store.client.hset(f"cq:job:{job}", "attempts", 2)
    threads = [parts.in_thread(job, lane=Lane.BULK) for job in jobs]
    wait_for(lambda: handlers, 5)
    handlers[0].finish.set()
    wait_for(lambda: len(handlers) == 2, 5)
    assert sum(parts.look(job).state is State.RUNNING for job in jobs) == 1
    handlers[1].finish.set()
    for thread in threads:
        thread.join(5)
    assert {parts.look(job).state for job in jobs} == {State.SUCCEEDED}


def test_a_handler_that_begins_while_the_worker_drains_is_abandoned_at_once(
    parts: Parts, handlers: list[Handler]
) -> None:
    job = shard(parts)
    factory = parts.executor.handlers[Kind.EMBED_SHARD]

    def drains_meanwhile(*given: Any) -> Any:
        parts.executor.draining.set()
        return factory(*given)

    parts.executor.handlers = {Kind.EMBED_SHARD: drains_meanwhile}
    parts.deliver(job, lane=Lane.BULK)
    assert handlers[0].stopped.is_set()
    assert parts.executor.leases.to_release() == [job]


def test_a_shard_that_was_revoked_before_its_turn_is_not_begun(parts: Parts, handlers: list[Handler]) -> None:
    job = shard(parts)
    factory = parts.executor.handlers[Kind.EMBED_SHARD]

    def revoked_meanwhile(*given: Any) -> Any:
        parts.executor.leases.revoke([job])
        handler = factory(*given)
        handler.run = lambda: pytest.fail("it must not run")  # type: ignore[method-assign]
        return handler

    parts.executor.handlers = {Kind.EMBED_SHARD: revoked_meanwhile}
    parts.deliver(job, lane=Lane.BULK)
    assert (parts.held(), parts.executor.leases.to_release()) == ([], [])


@pytest.mark.parametrize("threads", [2, 3, 4, 5, 8, 16])
def test_background_and_bulk_together_leave_threads_to_requests(threads: int) -> None:
    settings = Settings(worker_threads=threads)
    each = concurrency_of(settings.worker_threads)
    assert each >= 1
    assert settings.worker_threads - 2 * each >= max(1, threads // 2 if threads >= 4 else 1)
