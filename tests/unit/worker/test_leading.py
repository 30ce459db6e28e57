"""Runs that a worker leads: it looks for one, holds it like any job, and gives it back when it drains."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from clip_queue.shared import ops, runs
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import Inputs, Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.worker.executor.executor import JobExecutor
from clip_queue.worker.executor.leading import Leading
from clip_queue.worker.inference.engine import InferenceEngine
from tests.harness import wait_for
from tests.unit.worker.executor_parts import WORKER, Handler, Parts
from tests.unit.worker.models import MODEL


def accept(parts: Parts, output: str, owner: str = "me", model: str = MODEL) -> str:
    job = Job(Kind.EMBED_DATASET, model, 0, Lane.BULK, owner=owner, ttl=60_000)
    parts.store.execute(runs.accept_run(runs.RunSubmission(job, runs.RunRequest(["/in"], output), 10)))
    return job.id


@pytest.fixture
def begun(parts: Parts) -> Iterator[list[Handler]]:
    """The runs that are led, in the order in which they begin, by an executor that leads two at once."""
    begun: list[Handler] = []

    def factory(job: Job, inputs: Inputs, engine: InferenceEngine) -> Handler:
        assert job.worker == WORKER
        begun.append(Handler(job))
        return begun[-1]

    engine = parts.executor.engine
    parts.executor = JobExecutor(
        engine, parts.store, Settings(max_led_runs=2), WORKER, handlers={Kind.EMBED_DATASET: factory}
    )
    yield begun
    for handler in begun:
        handler.abandon()
    parts.executor.stop()


def test_a_worker_leads_as_many_runs_as_it_may_and_others_wait(parts: Parts, begun: list[Handler]) -> None:
    jobs = [accept(parts, f"/out/{i}") for i in range(3)]
    parts.executor.leading.start()
    wait_for(lambda: len(begun) == 2, 10)
    assert sorted(parts.look(job).state for job in jobs) == [State.QUEUED, State.RUNNING, State.RUNNING]
    begun[0].done = 5
    assert (begun[0].job.id, 5, 0) in parts.executor.leases.progress(), "a heartbeat names it"
    begun[0].finish.set()
    wait_for(lambda: len(begun) == 3, 10)
    assert parts.look(begun[0].job.id).state is State.SUCCEEDED


def test_a_worker_that_drains_gives_its_runs_back_and_begins_none(parts: Parts, begun: list[Handler]) -> None:
    job = accept(parts, "/out/a")
    parts.executor.leading.start()
    wait_for(lambda: begun, 10)
    parts.executor.draining.set()
    parts.executor.abandon_handlers()
    wait_for(lambda: parts.executor.leases.to_release() == [job], 10)
    parts.store.execute(ops.release([job], WORKER))
    assert (parts.look(job).state, parts.look(job).attempts) == (State.QUEUED, 0)
    assert not parts.store.client.zrange(f"cq:queued:{MODEL}:bulk", 0, -1), "an earlier release would take it"
    parts.executor.leading.join(5)
    assert len(begun) == 1
    assert parts.store.execute(runs.peek_run([MODEL])) == job


def test_a_worker_leads_no_run_of_a_model_that_it_does_not_serve(parts: Parts, begun: list[Handler]) -> None:
    accept(parts, "/out/a", model="other")
    assert not parts.executor._lead()
    assert begun == []


def test_a_worker_without_the_packages_or_that_is_told_so_leads_none(parts: Parts) -> None:
    engine, store = parts.executor.engine, parts.store
    for settings, handlers in ((Settings(), {}), (Settings(max_led_runs=0), {Kind.EMBED_DATASET: Handler})):
        executor = JobExecutor(engine, store, settings, "x", handlers=handlers)  # type: ignore[arg-type]
        assert executor.leading._threads == []


def test_a_store_that_is_away_is_waited_for() -> None:
    draining, calls = threading.Event(), []

    def lead() -> bool:
        calls.append(1)
        if len(calls) < 3:
            raise Unavailable("away")
        draining.set()
        return False

    leading = Leading(lead, 1, draining, interval=0.01, fatal=lambda error: pytest.fail(str(error)))
    leading.start()
    leading.join(10)
    assert len(calls) == 3


def test_a_thread_that_dies_ends_the_process() -> None:
    died: list[BaseException] = []

    def lead() -> bool:
        raise ZeroDivisionError

    leading = Leading(lead, 1, threading.Event(), interval=0.01, fatal=died.append)
    leading.start()
    leading.join(10)
    assert [type(error) for error in died] == [ZeroDivisionError]


# Shards of such runs


def shard(parts: Parts, name: str) -> str:
    return parts.accept("where", lane=Lane.BULK, kind=Kind.EMBED_SHARD, to=name)


def test_shards_under_either_name_are_done_for_a_message_of_either(parts: Parts, handlers: list[Handler]) -> None:
    for name in (MODEL, runs.led(MODEL)):
        jobs = [shard(parts, MODEL), shard(parts, runs.led(MODEL))]
        thread = threading.Thread(target=parts.executor.deliver, args=(name, Lane.BULK, []), daemon=True)
        seen = len(handlers)
        thread.start()
        for n in (1, 2):
            wait_for(lambda n=n, seen=seen: len(handlers) == seen + n, 10)
            handlers[-1].finish.set()
        thread.join(10)
        assert [parts.look(job).state for job in jobs] == [State.SUCCEEDED, State.SUCCEEDED]


def test_neither_kind_of_shard_waits_for_all_of_the_other(parts: Parts, handlers: list[Handler]) -> None:
    names = {shard(parts, name): name for _ in range(20) for name in (MODEL, runs.led(MODEL))}
    assert handlers == []
    found = [parts.executor._next(MODEL, Lane.BULK) for _ in range(60)]
    assert {names[ids[0]] for _, ids in filter(None, found)} == {MODEL, runs.led(MODEL)}


def test_a_worker_that_cannot_do_shards_passes_their_messages_on(parts: Parts) -> None:
    rung: list[list[str]] = []
    engine = parts.executor.engine
    executor = JobExecutor(
        engine, parts.store, Settings(), WORKER, handlers={}, ring=lambda model, lane, names: rung.append(names)
    )
    job = shard(parts, runs.led(MODEL))
    executor.deliver(runs.led(MODEL), Lane.BULK, [job])
    assert parts.look(job).state is State.QUEUED
    assert rung == [[job, WORKER]]
