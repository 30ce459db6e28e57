"""A job in work: it ends exactly once, whoever reports last, and its ending says what became of each item."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clip_queue.shared.errors import BadImage, ClipError
from clip_queue.shared.job import Inputs, Job, Kind, Lane, OnError, State
from clip_queue.worker.executor.execution import Run, RunItem, cosine

CLIP: Any = SimpleNamespace(fingerprint="f1ngerpr1nt")
ROWS = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float32)


class Ended:
    """Counts the ends of a run."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def __call__(self, run: Run) -> None:
        self.runs.append(run)


def begin(
    items: int,
    kind: Kind = Kind.EMBED_TEXT,
    *,
    on_error: OnError = OnError.FAIL,
    names: list[str] | None = None,
    deadline_in: int = 0,
) -> tuple[Run, Ended]:
    job = Job(kind, "m", items, on_error=on_error, created=1000, started=1250)
    job.deadline = 1250 + deadline_in if deadline_in else 0
    ended = Ended()
    return Run(job, Inputs([f"item {n}" for n in range(items)], names), CLIP, ended), ended


def bad(n: int = 0) -> BadImage:
    return BadImage.because(f"number {n}")


def test_a_run_is_over_when_its_last_item_is_in_and_keeps_the_items_order() -> None:
    run, ended = begin(3)
    for index in (2, 0, 1):
        assert not run.over
        assert not ended.runs
        run.put(index, ROWS[index], {"forward": 0.5})
    assert ended.runs == [run]
    ending = run.ending()
    assert (ending.state, ending.done, ending.failed) == (State.SUCCEEDED, 3, 0)
    np.testing.assert_array_equal(np.frombuffer(ending.answer.vectors, "<f4").reshape(3, 4), ROWS[:3])
    assert ending.answer.dimension == 4
    assert ending.answer.fingerprint == "f1ngerpr1nt"
    assert ending.answer.timings == {"queue": 0.25, "forward": 0.5}


def test_one_bad_item_ends_a_run_that_asks_for_all_at_once() -> None:
    run, ended = begin(3)
    run.fail(1, bad())
    assert ended.runs == [run]
    run.put(0, ROWS[0], {})  # what was under way comes in late
    run.fail(2, bad(2))
    assert ended.runs == [run]
    ending = run.ending()
    assert ending.state is State.FAILED
    assert ending.answer.error is not None
    assert ending.answer.error["index"] == 1
    assert ending.answer.vectors == b""


def test_the_first_bad_item_by_place_is_the_one_that_is_told() -> None:
    run, _ = begin(4, on_error=OnError.SKIP)
    for index in (3, 1, 2, 0):
        run.fail(index, bad(index))
    answer = run.ending().answer
    assert answer.error is not None
    assert "number 0" in answer.error["message"]
    assert [e["index"] for e in answer.errors] == [0, 1, 2, 3]


def test_a_run_that_skips_bad_items_answers_the_good_ones_beside_the_errors() -> None:
    run, ended = begin(3, on_error=OnError.SKIP)
    run.fail(1, bad())
    assert not ended.runs
    run.put(2, ROWS[2], {})
    run.put(0, ROWS[0], {})
    assert ended.runs == [run]
    ending = run.ending()
    assert (ending.state, ending.done, ending.failed) == (State.SUCCEEDED, 2, 1)
    np.testing.assert_array_equal(np.frombuffer(ending.answer.vectors, "<f4").reshape(2, 4), ROWS[[0, 2]])
    assert [e["index"] for e in ending.answer.errors] == [1]


def test_an_only_item_is_not_named_by_its_place() -> None:
    run, _ = begin(1)
    run.fail(0, bad())
    error = run.ending().answer.error
    assert error is not None
    assert error["index"] is None


@pytest.mark.parametrize(("item", "place"), [(0, None), (1, 0), (2, 1)])
def test_in_a_comparison_prompts_are_counted_and_the_subject_is_not(item: int, place: int | None) -> None:
    run, _ = begin(3, Kind.COMPARE)
    run.fail(item, bad())
    error = run.ending().answer.error
    assert error is not None
    assert error["index"] == place


def test_a_comparison_answers_cosines_and_its_names_and_no_vectors() -> None:
    run, _ = begin(3, Kind.COMPARE, names=["a", "b"])
    for index in range(3):
        run.put(index, 100 * ROWS[index], {})
    answer = run.ending().answer
    unit = ROWS[:3].astype(np.float64) / np.linalg.norm(ROWS[:3].astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(answer.similarity, unit[1:] @ unit[0], atol=1e-6)
    assert answer.names == ["a", "b"]
    assert answer.vectors == b""


def test_a_comparison_with_a_bad_item_fails_even_where_errors_are_skipped() -> None:
    run, _ = begin(3, Kind.COMPARE, on_error=OnError.SKIP)
    run.put(0, ROWS[0], {})
    run.fail(1, bad())
    run.put(2, ROWS[2], {})
    assert run.ending().state is State.FAILED


def test_the_cosine_is_computed_in_float32_and_knows_no_division_by_zero() -> None:
    out = cosine(ROWS[0], np.stack([ROWS[0], -ROWS[0], np.zeros(4, np.float32)]))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [1, -1, 0], atol=1e-6)


def test_an_abandoned_run_is_over_once_and_says_so() -> None:
    run, ended = begin(2)
    run.abandon()
    run.abandon()
    run.put(0, ROWS[0], {})
    run.put(1, ROWS[1], {})
    assert ended.runs == [run]
    assert run.abandoned


def test_abandoning_what_is_over_takes_nothing_back() -> None:
    run, ended = begin(1)
    run.put(0, ROWS[0], {})
    run.abandon()
    assert ended.runs == [run]
    assert not run.abandoned
    assert run.ending().state is State.SUCCEEDED


def test_a_run_past_its_deadline_drops_its_items_and_expires() -> None:
    run, ended = begin(2, deadline_in=-1)  # a deadline that has passed as it starts
    left: list[object] = []
    item = RunItem(run, 0, lambda payloads: None, "x", 0.0, left.append)  # type: ignore[arg-type, return-value]
    assert item.dropped
    item.drop()
    assert left == [None]
    assert ended.runs == [run]
    ending = run.ending()
    assert ending.state is State.EXPIRED
    assert ending.answer.error is not None
    assert ending.answer.error["code"] == "late"


def test_an_item_leaves_the_engine_once_with_its_row_or_with_nothing() -> None:
    run, _ = begin(2, on_error=OnError.SKIP)
    left: list[Any] = []
    good, ill = (RunItem(run, n, lambda payloads: None, "x", 0.0, left.append) for n in range(2))  # type: ignore[arg-type, return-value]
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
    answer = run.ending().answer
    assert answer.timings.keys() == {"queue", "prepare", "wait", "forward"}
    assert answer.errors == [
        {"code": "internal", "message": "The model failed on this item (RuntimeError).", "index": 1}
    ]


def test_many_threads_end_a_run_exactly_once() -> None:
    for round_number in range(60):
        run, ended = begin(40, on_error=OnError.SKIP if round_number % 2 else OnError.FAIL)
        barrier = threading.Barrier(5)

        def report(
            first: int, run: Run = run, barrier: threading.Barrier = barrier, round_number: int = round_number
        ) -> None:
            barrier.wait(10)
            for index in range(first, 40, 4):
                if (index + round_number) % 13 == 0:
                    run.fail(index, ClipError("x"))
                else:
                    run.put(index, ROWS[index], {})

        def interrupt(run: Run = run, barrier: threading.Barrier = barrier, round_number: int = round_number) -> None:
            barrier.wait(10)
            if round_number % 3 == 0:
                run.abandon()

        threads = [threading.Thread(target=report, args=(k,)) for k in range(4)] + [threading.Thread(target=interrupt)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert ended.runs == [run]
        assert run.done + run.failed == 40
