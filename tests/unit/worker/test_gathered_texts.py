"""The texts of a message begin together, end together, and none of them waits for what takes long."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import Inputs, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.ops import Completion
from clip_queue.worker.executor.executor import TOGETHER
from clip_queue.worker.executor.leases import Lease, Task
from tests.harness import wait_for
from tests.unit.worker.executor_parts import Parts


def free_places(parts: Parts) -> int:
    engine, taken = parts.executor.engine, 0
    while engine.acquire(Lane.INTERACTIVE, 0):
        taken += 1
    for _ in range(taken):
        parts.release()
    return taken


def test_the_texts_of_a_message_share_a_forward_pass(parts: Parts) -> None:
    jobs = [parts.accept("x" * n) for n in range(1, 18)]
    parts.deliver(*jobs)
    assert parts.model.batches == [[*range(1, 18)]]
    assert {parts.look(job).state for job in jobs} == {State.SUCCEEDED}


def test_many_texts_begin_before_all_are_ready(parts: Parts) -> None:
    parts.deliver(parts.accept(*["x"] * (2 * TOGETHER + 3)))
    assert len(parts.model.batches[0]) == TOGETHER
    assert sum(map(len, parts.model.batches)) == 2 * TOGETHER + 3


def test_texts_that_hold_the_last_places_begin_before_another_is_waited_for(parts: Parts) -> None:
    capacity = free_places(parts)
    for _ in range(capacity - 3):
        assert parts.executor.engine.acquire(Lane.INTERACTIVE, 0)
    job = parts.accept(*"abcdefgh")
    parts.deliver(job)
    assert parts.look(job).state is State.SUCCEEDED
    assert len(parts.model.batches[0]) == 3
    for _ in range(capacity - 3):
        parts.release()


def test_texts_that_an_error_left_behind_give_their_places_back(parts: Parts) -> None:
    capacity = free_places(parts)
    first, second = parts.accept("a"), parts.accept("b")
    inputs = parts.executor.leases.inputs

    def away(lease: Lease) -> Inputs | None:
        if lease.job.id == second:
            raise Unavailable("away")
        return inputs(lease)

    parts.executor.leases.inputs = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        parts.deliver(first, second)
    wait_for(lambda: free_places(parts) == capacity, 5)
    assert parts.executor.leases.to_release() == [first, second]


def test_texts_do_not_wait_while_the_inputs_of_a_large_job_are_asked_for(parts: Parts) -> None:
    small, large = parts.accept("a"), parts.accept(*["x" * 2000] * 40)
    inputs = parts.executor.leases.inputs

    def slow(lease: Lease) -> Inputs | None:
        if lease.job.id == large:
            assert lease.inputs is None, "larger than what comes with a claim"
            wait_for(lambda: parts.model.batches == [[1]], 5)
        return inputs(lease)

    parts.executor.leases.inputs = slow  # type: ignore[method-assign]
    parts.deliver(small, large)
    assert parts.look(large).state is State.SUCCEEDED


def test_known_texts_of_a_message_are_completed_together(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.deliver(parts.accept("a label"))
    jobs = [parts.accept("a label") for _ in range(2 * TOGETHER)]
    together: list[int] = []
    complete = parts.executor.leases.complete

    def counted(leases: Sequence[Lease], completions: list[Completion]) -> None:
        together.append(len(completions))
        complete(leases, completions)

    monkeypatch.setattr(parts.executor.leases, "complete", counted)
    parts.deliver(*jobs)
    assert len(parts.model.batches) == 1, "the first time"
    assert together == [TOGETHER, TOGETHER]
    assert {parts.look(job).state for job in jobs} == {State.SUCCEEDED}


def test_known_texts_do_not_wait_for_a_job_of_many_items_behind_them(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.deliver(parts.accept("a label"))
    small, large = parts.accept("a label"), parts.accept(*["a label"] * TOGETHER)
    begin, states = parts.executor.leases.begin, []

    def watched(lease: Lease, task: Task) -> bool:
        if lease.job.id == large:
            states.append(parts.look(small).state)
        return begin(lease, task)

    monkeypatch.setattr(parts.executor.leases, "begin", watched)
    parts.deliver(small, large)
    assert states == [State.SUCCEEDED]
    assert parts.look(large).state is State.SUCCEEDED
