"""The store's operations, each by itself. (Their interleavings: test_life_cycle.)"""

from __future__ import annotations

import pytest

from clip_queue.shared import ops, submissions
from clip_queue.shared.errors import KeyReused, QueueFull, UnknownJob
from clip_queue.shared.job import Inputs, Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.store import Store
from clip_queue.shared.submissions import Accepted, Submission
from clip_queue.shared.workers import WorkerInfo, bury, workers
from tests.harness import wait_for

from .store_calls import DONE, HOUR, MODEL, accepted, claim, finish, load, new, offer

# Accepting


def test_one_refusal_among_submissions_harms_no_other(store: Store) -> None:
    three = [Submission(new(total), Inputs(["x"] * total), limit=5) for total in (3, 3, 2)]
    results = store.execute(submissions.accept(three))
    assert [type(result) for result in results] == [Accepted, QueueFull, Accepted]
    assert "3 items" in str(results[1])
    assert load(store) == 5


def test_lanes_fill_on_their_own(store: Store) -> None:
    assert isinstance(offer(store, new(5), limit=5), Accepted)
    assert isinstance(offer(store, new(1), limit=5), QueueFull)
    assert isinstance(offer(store, new(5, Lane.INTERACTIVE), limit=5), Accepted)


def test_a_job_above_the_limit_is_taken_by_an_empty_lane(store: Store) -> None:
    assert isinstance(offer(store, new(9), limit=5), Accepted)
    assert isinstance(offer(store, new(1), limit=5), QueueFull)


def test_what_comes_back_is_what_was_accepted(store: Store) -> None:
    job = new(2)
    submission = Submission(job, Inputs([b"\xff\0", "Größe 🙂"], ["a", "b"]), 100, deadline_in=60)
    store.execute(submissions.accept([submission]))
    claimed = store.execute(ops.claim([job.id], "w", 3))[0]
    assert claimed.inputs == submission.inputs
    assert claimed.job is not None
    assert (claimed.job.kind, claimed.job.model, claimed.job.total) == (job.kind, MODEL, 2)
    assert claimed.job.deadline == claimed.job.created + 60_000


def test_large_inputs_are_fetched_apart_from_the_claim(store: Store) -> None:
    job = new()
    store.execute(submissions.accept([Submission(job, Inputs([bytes(ops.INLINE)]), 100)]))
    assert store.execute(ops.claim([job.id], "w", 3))[0].inputs is None
    assert store.execute(ops.inputs(job.id)) == Inputs([bytes(ops.INLINE)])


def test_an_idempotency_key_lives_exactly_as_long_as_its_job(store: Store) -> None:
    job = new()
    offer(store, job, idempotency="k", digest="d")
    assert store.client.pttl("cq:idem:me:k") == -1, "an hour in the queue must not make a repeat a second job"
    claim(store, job.id)
    finish(store, job.id)
    assert store.client.pttl("cq:idem:me:k") == pytest.approx(60_000, abs=5_000)
    assert store.execute(submissions.find_idempotent("me", "k", "d")) == job.id
    with pytest.raises(KeyReused):
        store.execute(submissions.find_idempotent("me", "k", "other"))


def test_a_job_that_a_duplicate_refers_to_is_not_discarded(store: Store) -> None:
    first, second = new(), new()
    offer(store, first, idempotency="k", digest="d")
    again = offer(store, second, idempotency="k", digest="d")
    assert isinstance(again, Accepted)
    assert (again.duplicate, again.job_id) == (True, first.id)
    store.execute(submissions.discard([first.id]))  # the first message could not be sent
    assert store.execute(ops.view(first.id)).job.state is State.QUEUED


def test_a_discarded_job_leaves_nothing_behind(store: Store) -> None:
    job = new()
    offer(store, job, idempotency="k", digest="d")
    store.execute(ops.watch(job.id, "list"))
    store.execute(submissions.discard([job.id]))
    assert load(store) == 0
    message = b"clip.m.background"  # who takes it finds no job
    assert set(store.client.keys()) == {b"cq:load", message}


# Completion


def test_a_late_workers_result_changes_nothing(store: Store) -> None:
    (job_id,) = accepted(store, new())
    claim(store, job_id, worker="paused")
    store.execute(ops.reconcile(MODEL, 0, 3, 3, HOUR))  # its lease is over
    claim(store, job_id, worker="other")
    assert not finish(store, job_id, "paused")
    assert finish(store, job_id, "other")
    assert not finish(store, job_id, "other")
    assert store.client.llen("r") == 1


def test_a_job_that_its_worker_does_not_know_of_is_taken_from_it(store: Store) -> None:
    """A store that has lost its last writes may have lost the end of a job, which its worker does not know any more."""
    forgotten, kept = accepted(store, new(), new())
    claim(store, forgotten, kept, worker="w")
    for job_id in (forgotten, kept):
        store.client.hset(f"cq:job:{job_id}", "started", 1)
    store.execute(ops.beat("w", b"info", HOUR, [(kept, 0, 0)]))
    store.execute(ops.reconcile(MODEL, 0, 3, 3, 60))
    states = [store.execute(ops.view(job_id)).job.state for job_id in (forgotten, kept)]
    assert states == [State.QUEUED, State.RUNNING]
    assert not finish(store, forgotten, "w")
    claim(store, forgotten, worker="w")
    assert finish(store, forgotten, "w")


def test_a_job_just_claimed_is_not_neglected_before_the_first_heartbeat(store: Store) -> None:
    (job_id,) = accepted(store, new())
    store.execute(ops.beat("w", b"info", HOUR, []))
    claim(store, job_id, worker="w")
    store.execute(ops.reconcile(MODEL, 0, 3, 3, 60))
    assert store.execute(ops.view(job_id)).job.state is State.RUNNING


def test_the_message_about_an_end_has_the_result(store: Store) -> None:
    (job_id,) = accepted(store, new())
    claim(store, job_id)
    finish(store, job_id)
    message = store.client.lpop("r")
    view, result = store.execute(ops.outcome(job_id))
    assert message[:32].decode() == job_id
    assert message[32:] == store.client.get(f"cq:out:{job_id}")
    assert result == DONE
    assert view is not None
    assert view.job.state is State.SUCCEEDED


def test_lists_that_nobody_reads_stay_bounded_and_end(store: Store) -> None:
    store.client.rpush("r", *range(20_000))
    (job_id,) = accepted(store, new())
    store.execute(ops.cancel(job_id, "me"))
    assert store.client.llen("r") == 20_000
    assert 0 < store.client.pttl("r") <= 60_000


def test_a_watch_on_a_job_that_has_ended_ends_with_its_record(store: Store) -> None:
    (job_id,) = accepted(store, new())
    store.execute(ops.cancel(job_id, "me"))
    assert store.execute(ops.watch(job_id, "list"))
    assert 0 < store.client.pttl(f"cq:watch:{job_id}") <= 60_000
    assert not store.execute(ops.watch("0" * 32, "list"))


def test_only_its_owner_sees_or_ends_a_job(store: Store) -> None:
    (job_id,) = accepted(store, new())
    for op in (ops.cancel(job_id, "another"), ops.view(job_id, "another"), ops.view("0" * 32)):
        with pytest.raises(UnknownJob):
            store.execute(op)
    assert store.execute(ops.view(job_id, "me")).job.state is State.QUEUED


# Queues and lists


def test_places_in_the_queue_are_by_arrival_and_survive_a_lost_worker(store: Store) -> None:
    ids = accepted(store, new(), new(), new())
    for place, job_id in enumerate(ids):
        store.client.zadd(f"cq:queued:{MODEL}:background", {job_id: place})
        store.client.hset(f"cq:job:{job_id}", "created", place)
    claim(store, ids[0], ids[1])
    assert store.execute(ops.view(ids[2])).position == 0
    store.execute(ops.reconcile(MODEL, 0, 3, 3, HOUR))
    assert [store.execute(ops.view(i)).position for i in ids] == [0, 1, 2]


def test_a_worker_with_room_takes_so_many_jobs_and_about_so_many_items(store: Store) -> None:
    accepted(store, *(new(4) for _ in range(6)))
    assert len(store.execute(ops.peek_queued(MODEL, Lane.BACKGROUND, 64, 10)).job_ids) == 3
    assert len(store.execute(ops.peek_queued(MODEL, Lane.BACKGROUND, 2, 1000)).job_ids) == 2
    assert store.execute(ops.peek_queued(MODEL, Lane.INTERACTIVE, 64, 10)).job_ids == []


def test_a_record_that_was_evicted_does_not_stay_in_the_queue_or_in_the_load(store: Store) -> None:
    ids = accepted(store, new(4), new(2))
    store.client.delete(f"cq:job:{ids[0]}")
    assert store.execute(ops.peek_queued(MODEL, Lane.BACKGROUND, 64, 100)).job_ids == [ids[1]]
    store.execute(ops.reconcile(MODEL, 0, 3, 3, HOUR))
    assert store.client.zrange(f"cq:open:{MODEL}", 0, -1) == [ids[1].encode()]
    claim(store, ids[1])
    finish(store, ids[1])
    store.execute(ops.reconcile(MODEL, 0, 3, 3, HOUR))
    assert load(store) == 0


def test_a_list_is_paged_in_order_while_jobs_come_and_expire(store: Store) -> None:
    ids = accepted(store, *(new() for _ in range(7)))
    for place, job_id in enumerate(ids):  # their times of arrival, a millisecond apart
        store.client.zadd("cq:jobs:me", {job_id: 1000 + place})
    page, cursor = store.execute(ops.list_jobs("me", None, 3, ""))
    assert [job.id for job in page] == ids[:3:-1]
    store.client.delete(f"cq:job:{ids[4]}", f"cq:job:{ids[3]}")  # the cursor's own, and the next
    store.client.zrem("cq:jobs:me", ids[4])
    late = accepted(store, new())
    page, cursor = store.execute(ops.list_jobs("me", None, 3, cursor))
    assert [job.id for job in page] == ids[2::-1]
    assert [job.id for job in store.execute(ops.list_jobs("me", None, 1, ""))[0]] == late
    assert store.execute(ops.list_jobs("me", State.FAILED, 3, "")) == ([], "")
    assert store.execute(ops.list_jobs("another", None, 3, ""))[0] == []


def test_an_owners_list_forgets_what_has_expired(store: Store) -> None:
    for job_id in accepted(store, *(new(ttl=1) for _ in range(6))):
        store.execute(ops.cancel(job_id, "me"))
    wait_for(lambda: not store.client.keys("cq:job:*"), 5, "the records to expire")
    accepted(store, new(), new(), new())
    assert store.client.zcard("cq:jobs:me") == 3
    assert 0 < store.client.pttl("cq:jobs:me") <= 32 * 86400 * 1000


def test_an_owners_list_forgets_what_has_expired_behind_jobs_that_take_days(store: Store) -> None:
    long = accepted(store, new(), new())
    for _ in range(5):
        for job_id in (many := accepted(store, *(new() for _ in range(40)))):
            store.execute(ops.cancel(job_id, "me"))
            store.client.delete(f"cq:job:{job_id}")  # as if it had expired
    assert store.client.zcard("cq:jobs:me") < 120, "of 202"
    left = {job_id.decode() for job_id in store.client.zrange("cq:jobs:me", 0, -1)}
    assert left >= set(long)
    assert left & set(many)


def test_a_worker_is_there_as_long_as_its_lease(store: Store) -> None:
    info = WorkerInfo("w", "host", 1, "cpu", 0.0)
    store.execute(ops.beat("w", info.pack(), 60, []))
    store.execute(ops.beat("gone", info.pack(), 60, []))
    store.client.delete("cq:worker:gone")
    assert store.execute(workers()) == [info]
    store.execute(bury())
    assert store.execute(workers()) == [info]
    assert store.client.smembers("cq:workers") == {b"w"}
    store.execute(ops.deregister("w"))
    assert store.execute(workers()) == []
    assert store.client.keys() == [b"cq:totals"]  # that one was lost


# Bulk runs


def test_a_run_is_held_by_its_leader_and_ends_with_it(store: Store) -> None:
    run = Job(Kind.EMBED_DATASET, MODEL, 10, Lane.BULK, owner="me", ttl=60_000, done=3, progress={"rows_s": 1.5})
    assert store.execute(ops.renew_run(run, "leader", 60)) is State.RUNNING
    run.done = 4
    assert store.execute(ops.renew_run(run, "leader", 60)) is State.RUNNING
    seen = store.execute(ops.view(run.id)).job
    assert (seen.total, seen.done, seen.progress, seen.worker) == (10, 4, {"rows_s": 1.5}, "leader")
    assert load(store, Lane.BULK) == 0
    store.client.delete("cq:worker:leader")
    store.execute(ops.reconcile(MODEL, 0, 3, 3, HOUR))
    ended = store.execute(ops.view(run.id)).job
    assert ended.state is State.FAILED
    assert ended.error is not None
    assert ended.error["message"] == ("The command that led this run is gone; the same command again goes on with it.")
    assert store.execute(ops.renew_run(run, "leader", 60)) is State.FAILED
