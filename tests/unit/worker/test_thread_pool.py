"""The pool of decoding threads: the lanes' order, its end, and a task that raises."""

from __future__ import annotations

import threading

import pytest

from clip_queue.shared.lane import Lane
from clip_queue.worker.inference.thread_pool import PriorityThreadPool
from tests.harness import wait_for

WAIT = 10.0  # seconds; only a bug lets them pass


def test_tasks_run_by_lane_and_in_order_within_a_lane() -> None:
    errors: list[BaseException] = []
    pool, order = PriorityThreadPool(1, fatal=errors.append), list[str]()
    for number in range(2):
        for lane in reversed(Lane):
            pool.submit(lane, lambda name=f"{lane} {number}": order.append(name))  # type: ignore[misc]
    pool.start()
    pool.stop(WAIT)
    assert order == [f"{lane} {number}" for lane in Lane for number in range(2)]
    assert errors == []


def test_all_submitted_tasks_are_done_before_the_threads_end() -> None:
    pool, done = PriorityThreadPool(3, fatal=_unexpected), list[int]()
    pool.start()
    for number in range(50):
        pool.submit(Lane.BULK, lambda n=number: done.append(n))  # type: ignore[misc]
    pool.stop(WAIT)
    assert sorted(done) == list(range(50))


def test_a_task_that_raises_is_fatal(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[BaseException] = []
    pool = PriorityThreadPool(1, fatal=errors.append, name="test-pool")
    pool.start()

    def bug() -> None:
        raise ZeroDivisionError

    pool.submit(Lane.INTERACTIVE, bug)
    wait_for(lambda: errors, WAIT)
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert "thread test-pool-0 died" in caplog.text
    wait_for(lambda: "test-pool-0" not in {thread.name for thread in threading.enumerate()}, WAIT)


def _unexpected(error: BaseException) -> None:
    raise AssertionError("a task failed") from error
