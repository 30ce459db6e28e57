"""The batcher, with a model that the test controls: it never waits, is bounded, and answers every item once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from clip_queue.shared.lane import Lane
from clip_queue.worker.inference.batcher import Batcher
from tests.harness import wait_for
from tests.unit.worker.batcher_items import WAIT, Entry, Fatal, Make, Model, Ready, busy, put
from tests.unit.worker.batcher_items import batcher as batcher  # the fixture


def test_a_lone_item_leaves_at_once_and_alone(batcher: Make) -> None:
    model = Model()
    entry = Entry(21, model)
    batcher().put(entry)
    assert entry.wait() == 42
    assert model.passes == [[21]]
    assert entry.starts == 1


def test_what_arrives_during_a_pass_shares_the_next_up_to_the_limit_in_order(batcher: Make) -> None:
    model, one = Model(gated=True), batcher(limit=4)
    first = busy(one, model)
    entries = put(one, [Entry(n, model) for n in range(6)])
    model.gate.release(3)
    assert [e.wait() for e in entries] == [0, 2, 4, 6, 8, 10]
    assert first.wait() == -2
    assert model.passes == [[-1], [0, 1, 2, 3], [4, 5]]


def test_the_interactive_lane_goes_first_and_the_background_lane_has_its_own_limit(batcher: Make) -> None:
    model, one = Model(gated=True), batcher(limit=4, background=2)
    busy(one, model)
    slow = put(one, [Entry(100 + n, model, Lane.BACKGROUND) for n in range(3)])
    fast = put(one, [Entry(n, model) for n in range(5)])
    model.gate.release(5)
    assert [e.wait() for e in (*slow, *fast)]
    assert model.passes == [[-1], [0, 1, 2, 3], [4], [100, 101], [102]]


def test_a_batch_holds_one_model_and_modality_and_the_others_keep_their_order(batcher: Make) -> None:
    a, b = Model(gated=True), Model()
    one = batcher(limit=4)
    busy(one, a)
    entries = put(one, [Entry(n, b if n % 2 else a) for n in range(8)])
    a.gate.release(2)
    assert [e.wait() for e in entries] == [2 * n for n in range(8)]
    assert a.passes == [[-1], [0, 2, 4, 6]]
    assert b.passes == [[1, 3, 5, 7]]


def test_a_dropped_item_costs_no_compute(batcher: Make) -> None:
    model, one = Model(gated=True), batcher()
    busy(one, model)
    entries = put(one, [Entry(n, model) for n in range(4)])
    entries[0].dropped = entries[2].dropped = True
    model.gate.release(2)
    assert [e.wait() for e in entries] == ["dropped", 2, "dropped", 6]
    assert model.passes == [[-1], [1, 3]]
    assert [e.starts for e in entries] == [0, 1, 0, 1]


def test_when_all_waiting_items_are_dropped_there_is_no_pass(batcher: Make) -> None:
    model, one = Model(gated=True), batcher()
    busy(one, model)
    entries = put(one, [Entry(n, model) for n in range(9)])
    for entry in entries:
        entry.dropped = True
    model.gate.release(1)
    assert [e.wait() for e in entries] == ["dropped"] * 9
    assert model.passes == [[-1]]


def test_one_failing_item_is_found_by_halving_and_fails_alone(batcher: Make, caplog: pytest.LogCaptureFixture) -> None:
    model, one = Model(gated=True), batcher(limit=8)
    poisoned = ValueError("five")
    model.poison = lambda payloads: poisoned if 5 in payloads else None
    busy(one, model)
    entries = put(one, [Entry(n, model) for n in range(8)])
    model.gated = False
    model.gate.release(1)
    assert [e.wait() for e in entries] == [0, 2, 4, 6, 8, poisoned, 12, 14]
    assert len(model.passes) <= 2 + 2 * 3, "as many passes as halving takes, not one an item"
    assert [record.getMessage() for record in caplog.records] == ["the model failed on an item"]
    assert one.alive()


def test_a_pass_that_fails_when_its_result_is_fetched_is_halved_too(batcher: Make) -> None:
    class Late(Ready):
        def result(self) -> np.ndarray:
            if any(row[0] == 6 for row in self._rows):
                raise MemoryError
            return self._rows

    entry = threading.Event()

    def forward(payloads: Sequence[Any]) -> Ready:
        entry.wait(WAIT)
        return Late(np.array([[2 * p] for p in payloads], dtype=np.float32))

    entries = put(batcher(limit=8), [Entry(n, forward) for n in range(6)])
    entry.set()
    told = [e.wait() for e in entries]
    assert isinstance(told.pop(3), MemoryError)
    assert told == [0, 2, 4, 8, 10]


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_rows_are_an_error_of_each_item(batcher: Make, count: int) -> None:
    model, one = Model(gated=True), batcher()
    busy(one, model)

    def forward(payloads: Sequence[Any]) -> Ready:
        return Ready(np.zeros((len(payloads) - 1, 1), dtype=np.float32))

    entries = put(one, [Entry(n, forward) for n in range(count)])
    model.gate.release()
    errors = [entry.wait() for entry in entries]
    assert [str(error) for error in errors] == ["the model returned 0 rows for 1 items"] * count


def test_items_that_are_added_together_are_in_one_pass(batcher: Make) -> None:
    model, one = Model(), batcher(capacity=3)
    entries = [Entry(n, model) for n in range(3)]
    one.put_all(entries)
    assert [entry.wait() for entry in entries] == [0, 2, 4]
    assert model.passes == [[0, 1, 2]]
    with pytest.raises(queue.Full, match="0 items wait"):
        one.put_all([Entry(n, model) for n in range(4)])


def test_a_lane_is_bounded_and_the_other_one_unaffected(batcher: Make) -> None:
    model, one = Model(gated=True), batcher(capacity=3)
    busy(one, model)
    waiting = put(one, [Entry(n, model) for n in range(3)])
    with pytest.raises(queue.Full, match="3 items wait in the interactive lane"):
        one.put(Entry(9, model))
    waiting += put(one, [Entry(n, model, Lane.BACKGROUND) for n in range(3)])
    model.gate.release(9)
    assert [e.wait() for e in waiting] == [0, 2, 4, 0, 2, 4]
    put(one, [last := Entry(9, model)])
    assert last.wait() == 18


def test_a_broken_device_ends_the_process(batcher: Make) -> None:
    ends: list[BaseException] = []
    model = Model()
    model.poison = lambda payloads: RuntimeError("CUDA error: an illegal memory access was encountered")
    entry = Entry(1, model)
    batcher(fatal=ends.append).put(entry)
    assert isinstance(entry.wait(), RuntimeError)
    assert [str(e) for e in ends] == ["CUDA error: an illegal memory access was encountered"]


def test_lack_of_device_memory_does_not_end_the_process(batcher: Make) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    model = Model()
    model.poison = lambda payloads: OutOfMemoryError("CUDA error: out of memory") if len(payloads) > 1 else None
    one = batcher(limit=8)
    model.gated = True
    busy(one, model)
    entries = put(one, [Entry(n, model) for n in range(4)])
    model.gated = False
    model.gate.release(1)
    assert [e.wait() for e in entries] == [0, 2, 4, 6]


def test_an_error_of_the_thread_itself_is_fatal(caplog: pytest.LogCaptureFixture) -> None:
    ends: list[BaseException] = []
    one = Batcher(dict.fromkeys(Lane, 4), capacity=4, fatal=ends.append)
    one.start()
    assert one.alive()

    one.put(Fatal(1, Model()))
    wait_for(lambda: not one.alive(), WAIT)
    assert [type(e) for e in ends] == [SystemExit]
    assert "the batcher's thread died" in caplog.text


def test_the_watchdog_sees_how_long_a_pass_takes_and_when_there_is_none(batcher: Make) -> None:
    model, one = Model(gated=True), batcher()
    assert one.busy_for() == 0
    first = busy(one, model)
    assert wait_for(lambda: one.busy_for() > 0.01, WAIT)
    model.gate.release()
    first.wait()
    wait_for(lambda: one.busy_for() == 0, WAIT)
    assert (one.items, one.batches) == (1, 1)
    assert one.busy > 0


@pytest.mark.parametrize("depth", [0, 1])
def test_depth_is_how_many_passes_are_launched_ahead_of_the_one_waited_for(batcher: Make, depth: int) -> None:
    order: list[tuple[str, int]] = []  # what was done with the pass that begins with this item
    go = threading.Event()

    class Async:
        def __init__(self, payloads: Sequence[Any]) -> None:
            self.payloads = list(payloads)
            order.append(("launch", self.payloads[0]))

        def result(self) -> np.ndarray:
            order.append(("wait", self.payloads[0]))
            return np.array([[2 * p] for p in self.payloads], dtype=np.float32)

    def forward(payloads: Sequence[Any]) -> Async:
        go.wait(WAIT)  # all items wait when the first pass is launched
        return Async(payloads)

    entries = put(batcher(limit=1, depth=depth), [Entry(n, forward) for n in range(3)])
    go.set()
    assert [e.wait() for e in entries] == [0, 2, 4]
    launch, wait = "launch", "wait"
    if depth:
        assert order == [(launch, 0), (launch, 1), (wait, 0), (launch, 2), (wait, 1), (wait, 2)]
    else:
        assert order == [(launch, 0), (wait, 0), (launch, 1), (wait, 1), (launch, 2), (wait, 2)]


def test_busy_counts_all_the_time_in_which_a_pass_is_in_flight(batcher: Make) -> None:
    def forward(payloads: Sequence[Any]) -> Ready:  # launching takes long, as many small operations do
        time.sleep(0.05)
        return Ready(np.array([[2 * p] for p in payloads], dtype=np.float32))

    one = batcher(limit=1, depth=1)
    entries = put(one, [Entry(n, forward) for n in range(2)])
    assert [e.wait() for e in entries] == [0, 2]
    wait_for(lambda: one.busy_for() == 0, WAIT)
    assert one.busy >= 0.1


@pytest.mark.parametrize(
    ("kind", "text", "broken"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB.", False),
        ("AcceleratorError", "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", False),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("AcceleratorError", "CUDA error: an illegal memory access was encountered", True),
        ("RuntimeError", "CUDA error: device-side assert triggered", True),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", True),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_which_errors_leave_the_device_unusable(batcher: Make, kind: str, text: str, broken: bool) -> None:
    ends: list[BaseException] = []
    error = type(kind, (RuntimeError,), {})(text)
    model = Model()
    model.poison = lambda payloads: error
    entry = Entry(1, model)
    batcher(fatal=ends.append).put(entry)
    assert entry.wait() is error
    assert ends == ([error] if broken else [])


def test_stopping_computes_the_items_that_wait(batcher: Make) -> None:
    model, one = Model(gated=True), batcher(limit=1)
    busy(one, model)
    entries = put(one, [Entry(n, model) for n in range(3)])
    model.gate.release(9)
    assert one.stop(WAIT)
    assert [e.wait() for e in entries] == [0, 2, 4]
    assert not one.alive()


def test_many_threads_put_items_and_each_item_gets_its_own_features(batcher: Make) -> None:
    model, one = Model(), batcher(limit=8, capacity=1000)
    entries = [Entry(n, model, Lane.BACKGROUND if n % 3 else Lane.INTERACTIVE) for n in range(400)]
    threads = [threading.Thread(target=put, args=(one, entries[k::8])) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert [e.wait() for e in entries] == [2 * n for n in range(400)]
    assert one.items == 400
