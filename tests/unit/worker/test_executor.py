"""The job executor between store and engine, with a model that computes nothing."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from clip_queue.shared import ops, submissions
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import Inputs, Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.worker.executor.executor import FEED_INTERVAL, JobExecutor
from tests.harness import wait_for
from tests.images import noise_image
from tests.unit.worker.executor_parts import WORKER, Parts
from tests.unit.worker.models import MODEL


def test_jobs_whose_claim_was_not_answered_are_given_back(parts: Parts) -> None:
    job = parts.accept("a")
    parts.store.losing = True
    with pytest.raises(Unavailable):
        parts.deliver(job)
    assert parts.look(job).state is State.RUNNING, "it is this worker's, and no thread knows it"
    parts.store.execute(ops.release(parts.executor.leases.to_release(), WORKER))
    assert (parts.look(job).state, parts.look(job).attempts) == (State.QUEUED, 0)
    parts.deliver(job)
    assert parts.look(job).state is State.SUCCEEDED


def test_claimed_jobs_that_wait_for_their_turn_have_leases_too(parts: Parts) -> None:
    parts.model.gate.clear()
    first = parts.accept(*map(str, range(4 * 32 + 40)))  # more than the engine has places
    second = parts.accept("second")
    thread = parts.in_thread(first, second)
    wait_for(lambda: parts.model.batches, 5)
    assert parts.look(second).state is State.RUNNING
    assert parts.held() == sorted([first, second])
    parts.model.gate.set()
    thread.join(10)
    assert parts.held() == []


def test_a_job_without_inputs_is_held_no_longer_than_it_takes_to_fail_it(parts: Parts) -> None:
    job = parts.accept("a")
    parts.store.client.delete(f"cq:in:{job}")
    parts.deliver(job)
    assert parts.look(job).state is State.FAILED
    assert parts.held() == []


def test_a_completion_whose_reply_was_lost_is_sent_again_and_counts_once(parts: Parts) -> None:
    job = parts.accept("a")
    parts.model.gate.clear()
    thread = parts.in_thread(job)
    wait_for(lambda: parts.model.batches, 5)
    parts.store.losing = True
    parts.model.gate.set()
    thread.join(10)
    assert parts.look(job).state is State.SUCCEEDED
    assert parts.held() == []


def test_a_text_that_cannot_be_tokenised_fails_only_its_job(parts: Parts) -> None:
    good, bad, skipping = parts.accept("a"), parts.accept("a", "choke"), parts.accept("b")
    parts.deliver(good, bad, skipping)
    assert [parts.look(job).state for job in (good, bad, skipping)] == [
        State.SUCCEEDED,
        State.FAILED,
        State.SUCCEEDED,
    ]
    error = parts.look(bad).error
    assert error is not None
    assert (error["code"], error["index"]) == ("internal", 1)
    assert parts.executor.leases.to_release() == []


def test_jobs_on_their_last_attempt_run_one_at_a_time(parts: Parts) -> None:
    suspects = [parts.accept("x" * n) for n in (1, 2, 3)]
    fresh = [parts.accept("x" * n) for n in (4, 5, 6)]
    for job in suspects:
        parts.store.client.hset(f"cq:job:{job}", "attempts", 2)
    parts.model.gate.clear()
    threads = [parts.in_thread(*jobs) for jobs in ([suspects[0], *fresh], suspects[1:])]
    most = 0

    def over() -> bool:
        nonlocal most
        running = [job for job in suspects if parts.look(job).state is State.RUNNING]
        most = max(most, len(running))
        if running:  # seen: now it may end
            parts.model.gate.set()
        return all(parts.look(job).state is State.SUCCEEDED for job in suspects + fresh)

    wait_for(over, 20)
    for thread in threads:
        thread.join(5)
    assert all(len(set(batch) & {1, 2, 3}) <= 1 for batch in parts.model.batches), parts.model.batches
    assert most == 1
    assert [parts.look(job).attempts for job in suspects] == [3, 3, 3]


def test_background_messages_beyond_the_concurrency_return_at_once_and_all_queued_jobs_are_done(parts: Parts) -> None:
    parts.executor = JobExecutor(parts.executor.engine, parts.store, Settings(), WORKER, concurrency=1)
    jobs = [parts.accept("x" * n, lane=Lane.BACKGROUND) for n in range(1, 200)]
    parts.model.gate.clear()
    thread = parts.in_thread(jobs[0], lane=Lane.BACKGROUND)
    wait_for(lambda: parts.model.batches, 10)
    parts.deliver(jobs[-1], lane=Lane.BACKGROUND)  # a second message: does not wait for the gate
    assert thread.is_alive()
    parts.model.gate.set()
    thread.join(20)
    assert {parts.look(job).state for job in jobs} == {State.SUCCEEDED}


@pytest.mark.parametrize(
    ("to", "message"),
    [(MODEL, "The job's inputs are gone."), ("another", "This worker does not serve the job's model.")],
)
def test_a_job_that_cannot_be_begun_fails_and_says_why(parts: Parts, to: str, message: str) -> None:
    job = parts.accept("a", to=to)
    if to == MODEL:
        parts.store.client.delete(f"cq:in:{job}")
    parts.deliver(job)
    failed = parts.look(job)
    assert failed.error is not None
    assert (failed.state, failed.error["message"]) == (State.FAILED, message)


def test_a_revoked_job_is_abandoned_and_neither_completed_nor_given_back(parts: Parts) -> None:
    parts.model.gate.clear()
    job, other = parts.accept("a"), parts.accept("b")
    threads = [parts.in_thread(job), parts.in_thread(other)]
    wait_for(lambda: parts.held() == sorted([job, other]), 5)
    parts.store.execute(ops.cancel(job, ""))
    parts.executor.leases.revoke([job, "never heard of"])
    assert parts.held() == [other]
    threads[0].join(5)
    parts.model.gate.set()
    threads[1].join(5)
    assert (parts.look(job).state, parts.look(other).state) == (State.CANCELLED, State.SUCCEEDED)
    assert parts.executor.leases.to_release() == []


def test_a_job_revoked_before_its_turn_is_not_begun(parts: Parts) -> None:
    parts.model.gate.clear()
    first = parts.accept(*map(str, range(4 * 32 + 40)))
    second = parts.accept("the second, of a length that no other has")
    thread = parts.in_thread(first, second)
    wait_for(lambda: len(parts.held()) == 2, 5)
    parts.executor.leases.revoke([second])
    parts.model.gate.set()
    thread.join(10)
    assert parts.look(first).state is State.SUCCEEDED
    assert parts.look(second).state is State.RUNNING, "the store has not been told anything"
    assert len("the second, of a length that no other has") not in {n for batch in parts.model.batches for n in batch}


def test_a_worker_that_ends_gives_back_its_jobs(parts: Parts) -> None:
    parts.model.gate.clear()
    job = parts.accept("a", "b")
    thread = parts.in_thread(job)
    wait_for(lambda: parts.model.batches, 5)
    parts.executor.leases.give_back_all()
    assert (parts.held(), parts.executor.leases.to_release()) == ([], [job])
    parts.model.gate.set()
    thread.join(5)
    assert parts.look(job).state is State.RUNNING, "its results were not sent"
    parts.store.execute(ops.release(parts.executor.leases.to_release(), WORKER))
    parts.executor.leases.released([job])
    assert (parts.look(job).state, parts.executor.leases.to_release()) == (State.QUEUED, [])


def test_a_job_that_its_worker_claims_again_has_a_new_lease(parts: Parts) -> None:
    """The first lease was lost while the worker was paused. Its end does not end the second."""
    parts.model.gate.clear()
    job = parts.accept("a")
    first = parts.in_thread(job)
    wait_for(lambda: parts.model.batches, 5)
    parts.store.execute(ops.release([job], WORKER))  # as a reconciler that took this worker for dead
    parts.executor.leases.revoke([job])
    second = parts.in_thread(job)
    wait_for(lambda: parts.held() == [job], 5)
    first.join(5)
    assert (parts.held(), parts.executor.leases.to_release()) == ([job], [])
    parts.model.gate.set()
    second.join(5)
    assert parts.look(job).state is State.SUCCEEDED


def test_a_job_that_comes_back_before_its_loss_is_known_is_not_ended_by_it(parts: Parts) -> None:
    """A heartbeat named the first run, and hears that it is lost when the worker has claimed the job again."""
    parts.model.gate.clear()
    job = parts.accept("a")
    first = parts.in_thread(job)
    wait_for(lambda: parts.model.batches, 5)
    leases = parts.executor.leases
    named = leases.held()
    parts.store.execute(ops.release([job], WORKER))  # as a reconciler that took this worker for dead
    second = parts.in_thread(job)
    wait_for(lambda: leases.held()[job] is not named[job], 5)
    first.join(5)
    assert not first.is_alive(), "the first run stops when the second begins"
    leases.revoke([job], named)
    assert (parts.held(), leases.to_release()) == ([job], [])
    assert not leases.held()[job].ended
    parts.model.gate.set()
    second.join(5)
    assert parts.look(job).state is State.SUCCEEDED
    assert parts.held() == []


def test_a_job_that_is_claimed_again_is_not_released_as_what_it_was_before(parts: Parts) -> None:
    """The store released it, but the reply was lost: the next heartbeat would release the new run."""
    job = parts.accept("a")
    parts.store.losing = True
    with pytest.raises(Unavailable):
        parts.deliver(job)
    leases = parts.executor.leases
    assert leases.to_release() == [job]
    parts.store.execute(ops.release([job], WORKER))
    parts.model.gate.clear()
    again = parts.in_thread(job)
    wait_for(lambda: parts.held() == [job], 5)
    assert leases.to_release() == []
    parts.model.gate.set()
    again.join(5)
    assert parts.look(job).state is State.SUCCEEDED


@pytest.mark.parametrize("items", [1, 200])
def test_a_job_with_an_item_that_hangs_ends_at_its_deadline(parts: Parts, items: int) -> None:
    """200 are more than the engine has places for."""
    parts.model.gate.clear()
    job = Job(Kind.EMBED_TEXT, MODEL, items, Lane.INTERACTIVE, ttl=60_000)
    inputs = Inputs([f"text {i}" for i in range(items)])
    parts.store.execute(submissions.accept([submissions.Submission(job, inputs, 1000, deadline_in=0.3)]))
    thread = parts.in_thread(job.id)
    wait_for(lambda: parts.look(job.id).state is State.EXPIRED, 5)
    thread.join(5)
    assert not thread.is_alive()
    parts.model.gate.set()


def test_completed_jobs_wait_for_a_store_that_cannot_be_reached(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    parts.model.gate.clear()
    job = parts.accept("a")
    thread = parts.in_thread(job)
    wait_for(lambda: parts.model.batches, 5)
    parts.store.away = True
    parts.model.gate.set()
    thread.join(1.5)
    assert thread.is_alive(), "results are not computed twice"
    assert "completed jobs wait for the store: away" in caplog.text
    parts.store.away = False
    thread.join(5)
    assert parts.look(job).state is State.SUCCEEDED


def test_a_job_that_cannot_be_completed_while_the_worker_drains_is_given_back(parts: Parts) -> None:
    parts.model.gate.clear()
    job, errors = parts.accept("a"), list[Unavailable]()

    def deliver() -> None:
        try:
            parts.deliver(job)
        except Unavailable as error:
            errors.append(error)

    thread = threading.Thread(target=deliver)
    thread.start()
    wait_for(lambda: parts.model.batches, 5)
    parts.executor.draining.set()
    parts.store.away = True
    parts.model.gate.set()
    thread.join(10)
    assert [error.message for error in errors] == ["away"]
    assert (parts.held(), parts.executor.leases.to_release()) == ([], [job])


def test_the_rest_of_a_job_that_is_revoked_while_it_waits_for_places_is_not_computed(parts: Parts) -> None:
    parts.model.gate.clear()
    capacity = parts.executor.engine.capacity
    job = parts.accept(*(f"text {n}" for n in range(capacity + 40)))
    thread = parts.in_thread(job)
    wait_for(lambda: parts.model.batches, 5)
    wait_for(lambda: not parts.executor.engine.acquire(Lane.INTERACTIVE, 0) or parts.release(), 5)
    time.sleep(3 * FEED_INTERVAL)  # it waits for a place more than once
    parts.executor.leases.revoke([job])
    parts.model.gate.set()
    thread.join(10)
    assert not thread.is_alive()
    assert sum(map(len, parts.model.batches)) < capacity


def test_a_background_message_of_a_worker_that_drains_claims_nothing(parts: Parts) -> None:
    job = parts.accept("a", lane=Lane.BACKGROUND)
    parts.executor.draining.set()
    parts.deliver(job, lane=Lane.BACKGROUND)
    assert parts.look(job).state is State.QUEUED


def test_texts_are_cached_for_each_owner_apart(parts: Parts) -> None:
    for owner, passes in (("one key", 1), ("another", 2), ("one key", 2)):
        job = Job(Kind.EMBED_TEXT, MODEL, 1, owner=owner, ttl=60_000)
        parts.store.execute(submissions.accept([submissions.Submission(job, Inputs(["secret"]), 100)]))
        parts.deliver(job.id)
        assert parts.look(job.id).state is State.SUCCEEDED
        assert len(parts.model.batches) == passes


def test_only_a_message_of_one_image_is_decoded_by_the_thread_that_brings_it(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    preprocess = parts.model.preprocess

    def noted(image: Any) -> Any:
        seen.append(threading.current_thread() is threading.main_thread())
        return preprocess(image)

    monkeypatch.setattr(parts.model, "preprocess", noted)

    def accept(count: int) -> str:
        job = Job(Kind.EMBED_IMAGE, MODEL, count, Lane.INTERACTIVE, ttl=60_000)
        inputs = Inputs([noise_image(1, (8, 8))] * count)
        parts.store.execute(submissions.accept([submissions.Submission(job, inputs, 1000)]))
        return job.id

    for jobs in ([accept(1)], [accept(2)], [accept(1), accept(1)]):
        parts.deliver(*jobs)
        assert {parts.look(job_id).state for job_id in jobs} == {State.SUCCEEDED}
    assert seen == [True, False, False, False, False]
