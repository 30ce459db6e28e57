"""A message that a busy worker cannot use goes to another worker, once round, and only while there is work."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.worker.executor.doorbell import LONGEST, Doorbell
from clip_queue.worker.executor.executor import JobExecutor
from tests.harness import wait_for
from tests.unit.worker.executor_parts import Parts
from tests.unit.worker.models import MODEL

Rung = list[tuple[str, Lane, list[str]]]


@pytest.fixture
def rung(parts: Parts) -> Iterator[Rung]:
    """What the executor of ``parts``, which takes one background message at a time, has passed on."""
    rung: Rung = []
    engine, executor = parts.executor.engine, parts.executor
    parts.executor = JobExecutor(
        engine, parts.store, Settings(), "w", concurrency=1, ring=lambda m, lane, names: rung.append((m, lane, names))
    )
    yield rung
    executor.stop()


def test_a_busy_worker_passes_a_message_on_if_work_waits(parts: Parts, rung: Rung) -> None:
    parts.model.gate.clear()
    first = parts.accept("a", lane=Lane.BACKGROUND)
    thread = parts.in_thread(first, lane=Lane.BACKGROUND)
    wait_for(lambda: parts.model.batches, 5)
    parts.deliver(first, lane=Lane.BACKGROUND)
    assert rung == [], "nothing waits: a message of the job that runs"
    second = parts.accept("b", lane=Lane.BACKGROUND)
    parts.deliver(second, lane=Lane.BACKGROUND)
    assert rung == [(MODEL, Lane.BACKGROUND, [second, "w"])]
    parts.deliver(second, "w", lane=Lane.BACKGROUND)
    assert len(rung) == 1, "it has gone round"
    parts.model.gate.set()
    thread.join(5)
    assert len(rung) == 1


def test_a_worker_with_a_hand_free_passes_nothing_on(parts: Parts, rung: Rung) -> None:
    parts.deliver(parts.accept("a", lane=Lane.BACKGROUND), lane=Lane.BACKGROUND)
    parts.deliver(parts.accept("a"))
    assert rung == []


def test_a_worker_that_drains_passes_a_message_on(parts: Parts, rung: Rung) -> None:
    job = parts.accept("a", lane=Lane.BACKGROUND)
    parts.executor.draining.set()
    parts.deliver(job, lane=Lane.BACKGROUND)
    assert len(rung) == 1


def test_a_burst_is_passed_on_as_few_messages_of_which_the_last_comes_after_all_jobs() -> None:
    rung: list[list[str]] = []
    bell = Doorbell("w", "m", Lane.BACKGROUND, lambda model, lane, names: rung.append(names))
    go, stopping = threading.Event(), threading.Event()
    looked: list[bool] = []

    def waits() -> bool:
        looked.append(go.is_set())
        return True

    bell.ring_on([], waits, stopping)
    threads = [threading.Thread(target=bell.ring_on, args=([str(i)], waits, stopping)) for i in range(20)]
    go.set()  # all jobs are in the store
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert looked[-1]
    assert len(rung) < 10


def test_a_message_that_cannot_be_passed_on_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def broken(model: str, lane: Lane, names: list[str]) -> None:
        raise ConnectionError

    bell = Doorbell("w", "m", Lane.BACKGROUND, broken)
    bell.ring_on([], lambda: True, threading.Event())
    assert "a message could not be passed on: ConnectionError" in caplog.text
    bell.ring_on(["x"] * (LONGEST + 1), lambda: pytest.fail("too long"), threading.Event())
