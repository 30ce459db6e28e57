"""The pool of decoding threads: the lanes' order, its end, and a task that raises."""

from __future__ import annotations

import os
import sys
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


def test_a_callers_thread_runs_a_task_itself_also_while_the_pool_is_busy() -> None:
    pool, ran = PriorityThreadPool(1, fatal=_unexpected), list[threading.Thread]()
    gate, begun = threading.Event(), threading.Event()

    def blocked() -> None:
        begun.set()
        assert gate.wait(WAIT)

    pool.start()
    pool.submit(Lane.BULK, blocked)
    assert begun.wait(WAIT)
    pool.run(Lane.BULK, lambda: ran.append(threading.current_thread()))
    assert ran == [threading.current_thread()]
    gate.set()
    pool.stop(WAIT)


def test_no_more_callers_are_held_up_than_there_are_threads() -> None:
    pool, gate = PriorityThreadPool(2, fatal=_unexpected), threading.Event()
    ran: list[threading.Thread] = []

    def task() -> None:
        assert gate.wait(WAIT)
        ran.append(threading.current_thread())

    callers = [threading.Thread(target=pool.run, args=(Lane.BULK, task)) for _ in range(5)]
    for caller in callers:
        caller.start()
    wait_for(lambda: sum(caller.is_alive() for caller in callers) == 2, WAIT)
    pool.start()
    gate.set()
    for caller in callers:
        caller.join(WAIT)
    pool.stop(WAIT)
    assert len(ran) == 5
    assert len({*ran} & {*callers}) == 2
    pool.run(Lane.BULK, lambda: ran.append(threading.current_thread()))
    assert ran[-1] is threading.current_thread()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all threads of a process have one priority")
def test_the_pools_threads_give_way_and_the_callers_does_not() -> None:
    pool, found = PriorityThreadPool(1, fatal=_unexpected, nice=7), list[int]()
    plain = PriorityThreadPool(1, fatal=_unexpected)

    def look() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    pool.start()
    pool.submit(Lane.INTERACTIVE, look)
    wait_for(lambda: found, WAIT)
    pool.run(Lane.BULK, look)
    pool.stop(WAIT)
    plain.submit(Lane.INTERACTIVE, look)
    plain.start()
    plain.stop(WAIT)
    assert found == [min(before + 7, 19), before, before]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


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
