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


def test_a_callers_thread_runs_a_task_itself_while_one_of_the_pool_is_idle_and_nothing_waits() -> None:
    pool, ran = PriorityThreadPool(1, fatal=_unexpected), dict[str, threading.Thread]()
    gate, begun = threading.Event(), threading.Event()

    def task(name: str) -> None:
        ran[name] = threading.current_thread()

    def blocked() -> None:
        begun.set()
        assert gate.wait(WAIT)

    pool.start()
    pool.run(Lane.INTERACTIVE, lambda: task("idle"))
    pool.submit(Lane.BULK, blocked)
    assert begun.wait(WAIT)
    pool.run(Lane.INTERACTIVE, lambda: task("busy"))
    gate.set()
    wait_for(lambda: "busy" in ran)
    assert ran["idle"] is threading.current_thread()
    assert ran["busy"] is not threading.current_thread()
    wait_for(lambda: pool._at_work == 0)
    held = threading.Thread(target=lambda: pool.run(Lane.INTERACTIVE, blocked))  # a caller takes the only place
    gate.clear()
    begun.clear()
    held.start()
    assert begun.wait(WAIT)
    assert pool._at_work == 1
    gate.set()
    held.join(WAIT)
    pool.run(Lane.INTERACTIVE, lambda: task("again"))
    assert ran["again"] is threading.current_thread()
    pool.stop(WAIT)


def test_a_callers_task_that_raises_is_fatal_too() -> None:
    errors: list[BaseException] = []
    PriorityThreadPool(1, fatal=errors.append).run(Lane.BULK, lambda: [][0])
    assert [type(error) for error in errors] == [IndexError]


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
