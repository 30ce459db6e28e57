"""The heartbeat, step by step, with a clock of the test's own: lease, progress, watchdog, draining, reconciling."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fakeredis
import pytest

from clip_queue.shared import ops, submissions
from clip_queue.shared.errors import ClipError, Unavailable
from clip_queue.shared.job import Inputs, Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Op, Store
from clip_queue.shared.vectors import Vector
from clip_queue.shared.workers import WorkerInfo, workers
from clip_queue.worker.executor.executor import JobExecutor
from clip_queue.worker.heartbeat import END, Heartbeat
from clip_queue.worker.inference.engine import InferenceEngine
from tests.harness import wait_for
from tests.taken import read
from tests.unit.worker.models import LOAD, MODEL, Model

WORKER = "w"
SETTINGS = Settings(device="cpu", lease=0.6, forward_timeout=1, drain_timeout=20)


class BreakableStore(Store):
    """A store whose operations raise :attr:`error` while there is one."""

    error: Exception | None = None

    def execute(self, op: Op[Any]) -> Any:
        if self.error:
            raise self.error
        return super().execute(op)


class Recipient:
    """Ignores what it gets."""

    gone = False

    def drop(self) -> None: ...
    def resolve(self, features: Vector, timings: dict[str, float]) -> None: ...
    def fail(self, error: ClipError) -> None: ...


@dataclass
class Task:
    """Work on a job that is as far as a test says."""

    done: int = 0
    failed: int = 0
    abandoned: bool = False

    def abandon(self) -> None:
        self.abandoned = True


@dataclass
class Parts:
    """A heartbeat with what a test needs of its surroundings."""

    store: BreakableStore
    executor: JobExecutor
    model: Model
    clock: float = 1000.0
    fatal: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat(
            self.executor,
            SETTINGS,
            store=self.store,
            interval=0.01,
            now=lambda: self.clock,
            fatal=self.fatal.append,
        )

    def accept(self, lane: Lane = Lane.INTERACTIVE) -> str:
        job = Job(Kind.EMBED_TEXT, MODEL, 3, lane, ttl=60_000)
        submission = submissions.Submission(job, Inputs(["a", "b", "c"]), 1000)
        self.store.execute(submissions.accept([submission], publish=False))
        return job.id

    def sent(self) -> list[tuple[str, str, list[str]]]:
        """The messages that wait."""
        return [read(data) for key in self.store.client.keys("clip.*") for data in self.store.client.lrange(key, 0, -1)]

    def look(self, job_id: str) -> Job:
        return self.store.execute(ops.view(job_id)).job

    def live(self) -> list[WorkerInfo]:
        return self.store.execute(workers())


@pytest.fixture
def parts() -> Iterator[Parts]:
    server = fakeredis.FakeServer()
    engine = InferenceEngine(SETTINGS, load_model=LOAD)
    executor = JobExecutor(engine, Store(fakeredis.FakeRedis(server=server)), SETTINGS, WORKER, handlers={})
    engine.start()
    yield Parts(BreakableStore(fakeredis.FakeRedis(server=server)), executor, engine.models[MODEL])  # type: ignore[arg-type]
    engine.stop()


def test_a_step_registers_the_worker_with_its_models(parts: Parts) -> None:
    parts.heartbeat.step()
    (live,) = parts.live()
    assert (live.id, live.device, live.work) == (WORKER, "cpu", [])
    assert [model.name for model in live.models] == [MODEL]
    assert live.logit_scales == {MODEL: 20.0}
    assert parts.fatal == []


def test_a_step_tells_what_the_card_says(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.executor.engine.gpu, "usage", lambda: {"busy": 0.5})
    parts.heartbeat.step()
    assert parts.live()[0].gpu == {"busy": 0.5}


def test_the_jobs_that_a_worker_holds_have_their_progress_in_the_store(parts: Parts) -> None:
    job = parts.accept()
    with parts.executor.leases.claim([job]) as claims:
        parts.executor.leases.begin(claims.leases[0], Task(done=2, failed=1))
        parts.heartbeat.step()
    held = parts.look(job)
    assert (held.state, held.done, held.failed) == (State.RUNNING, 2, 1)


def test_work_on_a_job_that_was_cancelled_is_abandoned(parts: Parts) -> None:
    job, task = parts.accept(), Task()
    with parts.executor.leases.claim([job]) as claims:
        parts.executor.leases.begin(claims.leases[0], task)
        parts.store.execute(ops.cancel(job, ""))
        parts.heartbeat.step()
        assert task.abandoned
    assert parts.executor.leases.to_release() == []


def test_jobs_that_are_given_back_are_queued_again_once_the_store_answers(parts: Parts) -> None:
    job = parts.accept()
    with parts.executor.leases.claim([job]):
        pass  # not completed
    parts.store.error = Unavailable("away")
    parts.heartbeat.step()
    assert parts.executor.leases.to_release() == [job]
    parts.store.error = None
    parts.heartbeat.step()
    assert (parts.look(job).state, parts.executor.leases.to_release()) == (State.QUEUED, [])


def test_a_store_that_cannot_be_reached_is_logged_and_ends_nothing(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    parts.store.error = Unavailable("away")
    parts.heartbeat.step()
    assert [record.getMessage() for record in caplog.records] == ["no heartbeat: away"]
    assert parts.fatal == []


# The watchdog


def test_a_forward_pass_that_hangs_ends_the_process(parts: Parts) -> None:
    parts.model.gate.clear()
    engine = parts.executor.engine
    assert engine.acquire(Lane.INTERACTIVE, 1)
    engine.embed(engine.models[MODEL], Lane.INTERACTIVE, "a", Recipient())
    wait_for(lambda: engine.batcher.busy_for() > 1, 10)
    parts.heartbeat.step()
    parts.model.gate.set()
    assert [str(error) for error in parts.fatal] == ["a forward pass has taken 1 s (limit 1)"]


def test_a_batcher_whose_thread_has_ended_ends_the_process(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Thread(target=int)
    ended.start()
    ended.join(10)
    batcher = parts.executor.engine.batcher
    monkeypatch.setattr(batcher, "_threads", [*batcher._threads, ended])
    parts.heartbeat.step()
    assert [str(error) for error in parts.fatal] == ["the batcher's thread is gone"]


def test_a_worker_that_ends_is_not_ended_by_its_heartbeat(parts: Parts) -> None:
    """Its threads are over before the heartbeat's is."""
    assert parts.executor.engine.batcher.stop(10)
    parts.heartbeat.step()
    assert parts.fatal == []


# Draining


def test_a_worker_that_drains_abandons_handlers_and_gives_jobs_back_after_its_time(parts: Parts) -> None:
    job, task = parts.accept(), Task()
    with parts.executor.leases.claim([job]) as claims:
        parts.executor.leases.begin(claims.leases[0], task)
        parts.heartbeat.drain()
        parts.clock += SETTINGS.drain_timeout
        parts.heartbeat.step()
        assert task.abandoned
        assert parts.look(job).state is State.RUNNING, "it still has its time"
        parts.clock += 0.1
        parts.heartbeat.step()
        assert parts.look(job).state is State.QUEUED
    assert parts.executor.draining.is_set()


def test_a_worker_that_drains_ends_by_itself_if_a_thread_of_it_does_not(parts: Parts) -> None:
    parts.heartbeat.drain()
    parts.clock += SETTINGS.drain_timeout + END
    parts.heartbeat.step()
    assert parts.fatal == []
    parts.clock += 0.1
    parts.heartbeat.step()
    assert [str(error) for error in parts.fatal] == [
        "it was told to stop, and a thread has not ended 20 s after drain_timeout"
    ]


# Reconciling


def lose_message(parts: Parts, job_id: str) -> None:
    """As if the message of a job had been sent long ago; the queue is empty."""
    parts.store.client.hset(f"cq:job:{job_id}", "sent", 0)


def end_grace_period() -> None:
    """Wait for the time in which a new process does not reconcile."""
    time.sleep(SETTINGS.lease + 0.05)


def test_a_job_without_a_message_is_sent_again_but_not_in_the_grace_period(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    job, queue = parts.accept(), f"clip.{MODEL}.interactive"
    lose_message(parts, job)
    parts.heartbeat.step()
    assert parts.sent() == []
    end_grace_period()
    parts.heartbeat.step()
    assert parts.sent() == [(MODEL, Lane.INTERACTIVE, [job])]
    assert f"sending 1 job(s) of {queue} again" in caplog.text


def test_after_an_outage_of_the_store_the_grace_period_begins_again(parts: Parts) -> None:
    end_grace_period()
    parts.store.error = Unavailable("away")
    parts.heartbeat.step()
    parts.store.error = None
    parts.heartbeat.step()
    assert not parts.store.client.exists("cq:reconciler"), "it did not ask for its turn"


# The measured rate


def test_the_rate_is_measured_over_forward_passes_and_smoothed(parts: Parts) -> None:
    batcher = parts.executor.engine.batcher
    rates = []
    for items, busy in ((0, 0.0), (100, 1.0), (100, 1.5), (110, 2.0), (400, 2.005)):
        batcher.items, batcher.busy = items, busy
        parts.heartbeat.step()
        rates.append(parts.live()[0].rate)
    assert rates == pytest.approx([0, 100, 100, 82, 82])


# The thread


def test_the_thread_beats_until_it_is_stopped_and_the_lease_ends_with_it(parts: Parts) -> None:
    parts.heartbeat.start()
    wait_for(parts.live, 10)
    job = parts.accept()
    with parts.executor.leases.claim([job]):
        pass
    parts.heartbeat.stop()
    other = Store(parts.store.client)
    assert other.execute(workers()) == []
    assert other.execute(ops.view(job)).job.state is State.QUEUED


def test_a_worker_has_its_lease_before_it_can_claim(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, a job that it has just claimed is that of a dead worker to whoever reconciles next."""
    monkeypatch.setattr(parts.heartbeat._thread, "start", lambda: None)  # it gets no core for a while
    parts.heartbeat.start()
    job = parts.accept()
    with parts.executor.leases.claim([job]) as claims:
        assert [lease.job.id for lease in claims.leases] == [job]
        parts.store.execute(ops.reconcile(MODEL, 0, SETTINGS.max_attempts, 60.0, 60.0))
        view = parts.store.execute(ops.view(job))
        assert (view.job.state, view.job.attempts) == (State.RUNNING, 1)


def test_a_worker_starts_while_the_store_is_away(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    parts.store.error = Unavailable("away")
    parts.heartbeat.start()
    assert "no heartbeat: away" in caplog.text
    parts.store.error = None
    wait_for(parts.live, 10)
    parts.heartbeat.stop()
    assert not parts.fatal


def test_stopping_while_the_store_is_away_is_logged(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    parts.store.error = Unavailable("away")
    parts.heartbeat.stop()
    assert "the store is away: this worker's jobs are queued again when its lease runs out" in caplog.text


def test_an_unexpected_error_of_the_thread_ends_the_process(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    parts.heartbeat.start()
    parts.store.error = ZeroDivisionError("a bug")
    wait_for(lambda: parts.fatal, 10)
    assert [str(error) for error in parts.fatal] == ["a bug"]
    assert "the heartbeat's thread died" in caplog.text
