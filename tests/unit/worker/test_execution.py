"""The execution of a job: it ends exactly once, and its completion has the features or the error of each item."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from clip_queue.shared.errors import BadImage, ClipError
from clip_queue.shared.job import Inputs, Job, Kind, OnError, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.vectors import normalise
from clip_queue.worker.executor.execution import JobExecution
from clip_queue.worker.inference.item import BatchItem

FINGERPRINT = "f1ngerpr1nt"
ROWS = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float32)


class Ended:
    """Counts the ends of an execution."""

    def __init__(self) -> None:
        self.executions: list[JobExecution] = []

    def __call__(self, execution: JobExecution) -> None:
        self.executions.append(execution)


def begin(
    items: int,
    kind: Kind = Kind.EMBED_TEXT,
    *,
    on_error: OnError = OnError.FAIL,
    names: list[str] | None = None,
    deadline_in: int = 0,
) -> tuple[JobExecution, Ended]:
    job = Job(kind, "m", items, on_error=on_error, created=1000, started=1250)
    job.deadline = 1250 + deadline_in if deadline_in else 0
    ended = Ended()
    return JobExecution(job, Inputs([f"item {n}" for n in range(items)], names), FINGERPRINT, ended), ended


def bad(n: int = 0) -> BadImage:
    return BadImage.because(f"number {n}")


def test_an_execution_is_over_when_its_last_item_is_in_and_keeps_the_items_order() -> None:
    execution, ended = begin(3)
    for index in (2, 0, 1):
        assert not execution.over
        assert not ended.executions
        execution.put(index, ROWS[index], {"forward": 0.5})
    assert ended.executions == [execution]
    completion = execution.completion()
    assert (completion.state, completion.done, completion.failed) == (State.SUCCEEDED, 3, 0)
    np.testing.assert_array_equal(np.frombuffer(completion.result.vectors, "<f4").reshape(3, 4), ROWS[:3])
    assert completion.result.dimension == 4
    assert completion.result.fingerprint == FINGERPRINT
    assert completion.result.timings == {"queue": 0.25, "forward": 0.5}


def test_one_bad_item_ends_an_execution_that_asks_for_all_at_once() -> None:
    execution, ended = begin(3)
    execution.fail(1, bad())
    assert ended.executions == [execution]
    execution.put(0, ROWS[0], {})  # an item that was being computed reports late
    execution.fail(2, bad(2))
    assert ended.executions == [execution]
    completion = execution.completion()
    assert completion.state is State.FAILED
    assert completion.result.error is not None
    assert completion.result.error["index"] == 1
    assert completion.result.vectors == b""


def test_the_error_of_a_job_is_that_of_its_first_bad_item() -> None:
    execution, _ = begin(4, on_error=OnError.SKIP)
    for index in (3, 1, 2, 0):
        execution.fail(index, bad(index))
    result = execution.completion().result
    assert result.error is not None
    assert "number 0" in result.error["message"]
    assert [e["index"] for e in result.errors] == [0, 1, 2, 3]


def test_an_execution_that_skips_bad_items_has_the_features_of_the_good_ones_and_the_errors() -> None:
    execution, ended = begin(3, on_error=OnError.SKIP)
    execution.fail(1, bad())
    assert not ended.executions
    execution.put(2, ROWS[2], {})
    execution.put(0, ROWS[0], {})
    assert ended.executions == [execution]
    completion = execution.completion()
    assert (completion.state, completion.done, completion.failed) == (State.SUCCEEDED, 2, 1)
    np.testing.assert_array_equal(np.frombuffer(completion.result.vectors, "<f4").reshape(2, 4), ROWS[[0, 2]])
    assert [e["index"] for e in completion.result.errors] == [1]


def test_the_error_of_a_lone_item_has_no_index() -> None:
    execution, _ = begin(1)
    execution.fail(0, bad())
    error = execution.completion().result.error
    assert error is not None
    assert error["index"] is None


@pytest.mark.parametrize(("item", "place"), [(0, None), (1, 0), (2, 1)])
def test_in_a_comparison_prompts_are_counted_and_the_subject_is_not(item: int, place: int | None) -> None:
    execution, _ = begin(3, Kind.COMPARE)
    execution.fail(item, bad())
    error = execution.completion().result.error
    assert error is not None
    assert error["index"] == place


def test_the_result_of_a_comparison_has_cosines_and_names_and_no_vectors() -> None:
    execution, _ = begin(3, Kind.COMPARE, names=["a", "b"])
    for index in range(3):
        execution.put(index, 100 * ROWS[index], {})
    result = execution.completion().result
    np.testing.assert_allclose(result.similarity, normalise(ROWS[1:3]) @ normalise(ROWS[:1])[0], atol=1e-6)
    assert result.names == ["a", "b"]
    assert result.vectors == b""


def test_a_comparison_with_a_bad_item_fails_even_where_errors_are_skipped() -> None:
    execution, _ = begin(3, Kind.COMPARE, on_error=OnError.SKIP)
    execution.put(0, ROWS[0], {})
    execution.fail(1, bad())
    execution.put(2, ROWS[2], {})
    assert execution.completion().state is State.FAILED


def test_an_abandoned_execution_is_over_once() -> None:
    execution, ended = begin(2)
    execution.abandon()
    execution.abandon()
    execution.put(0, ROWS[0], {})
    execution.put(1, ROWS[1], {})
    assert ended.executions == [execution]
    assert execution.abandoned


def test_abandoning_an_execution_that_is_over_changes_nothing() -> None:
    execution, ended = begin(1)
    execution.put(0, ROWS[0], {})
    execution.abandon()
    assert ended.executions == [execution]
    assert not execution.abandoned
    assert execution.completion().state is State.SUCCEEDED


def test_an_execution_past_its_deadline_drops_its_items_and_expires() -> None:
    execution, ended = begin(2, deadline_in=-1)  # a deadline that has passed as it starts
    left: list[object] = []
    item = BatchItem(execution.item(0), Lane.INTERACTIVE, lambda payloads: None, "x", 0.0, left.append)  # type: ignore[arg-type, return-value]
    assert item.dropped
    item.drop()
    assert left == [None]
    assert ended.executions == [execution]
    completion = execution.completion()
    assert completion.state is State.EXPIRED
    assert completion.result.error is not None
    assert completion.result.error["code"] == "late"
    assert completion.result.error["message"] == "The job's deadline passed before it was done."


def test_an_item_leaves_the_engine_once_with_its_row_or_with_nothing() -> None:
    execution, _ = begin(2, on_error=OnError.SKIP)
    left: list[Any] = []
    good, ill = (
        BatchItem(execution.item(n), Lane.INTERACTIVE, lambda payloads: None, "x", 0.0, left.append) for n in range(2)
    )  # type: ignore[arg-type, return-value]
    assert good.lane is Lane.INTERACTIVE
    batch = ROWS[:2].copy()
    good.started()
    good.resolve(batch[0])
    ill.started()
    ill.fail(RuntimeError("inside"))
    assert len(left) == 2
    np.testing.assert_array_equal(left[0], ROWS[0])
    assert left[0].base is None, "a view would keep the whole batch in memory"
    assert left[1] is None
    result = execution.completion().result
    assert result.timings.keys() == {"queue", "prepare", "wait", "forward"}
    assert result.errors == [
        {"code": "internal", "message": "The model failed on this item (RuntimeError).", "index": 1}
    ]


def test_many_threads_end_an_execution_exactly_once() -> None:
    for round_number in range(60):
        execution, ended = begin(40, on_error=OnError.SKIP if round_number % 2 else OnError.FAIL)
        barrier = threading.Barrier(5)

        def report(
            first: int,
            execution: JobExecution = execution,
            barrier: threading.Barrier = barrier,
            round_number: int = round_number,
        ) -> None:
            barrier.wait(10)
            for index in range(first, 40, 4):
                if (index + round_number) % 13 == 0:
                    execution.fail(index, ClipError("x"))
                else:
                    execution.put(index, ROWS[index], {})

        def interrupt(
            execution: JobExecution = execution, barrier: threading.Barrier = barrier, round_number: int = round_number
        ) -> None:
            barrier.wait(10)
            if round_number % 3 == 0:
                execution.abandon()

        threads = [threading.Thread(target=report, args=(k,)) for k in range(4)] + [threading.Thread(target=interrupt)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert ended.executions == [execution]
        assert execution.done + execution.failed == 40
