"""The store's operations, one by one (their interleavings: test_life_cycle)."""

from __future__ import annotations

from collections.abc import Iterator

import fakeredis
import pytest

from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError, KeyReused, QueueFull, Unavailable, UnknownJob
from clip_queue.shared.job import Answer, Inputs, Job, Kind, Lane, State
from clip_queue.shared.ops import Accepted, Ending, Submission
from clip_queue.shared.reconciler import Patience, Round, take_turn
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore, Store
from clip_queue.shared.workers import WorkerInfo, workers
from tests.harness import free_port, wait_for

HOUR = 3600.0
MODEL = "m"
DONE = Answer("fingerprint", b"\0\0\x80\x3f", 1)


@pytest.fixture
def store() -> Iterator[Store]:
    yield (it := Store(fakeredis.FakeRedis()))
    it.close()


def new(total: int = 1, lane: Lane = Lane.BACKGROUND, owner: str = "me", ttl: int = 60_000, reply: str = "r") -> Job:
    return Job(Kind.EMBED_TEXT, MODEL, total, lane, owner=owner, ttl=ttl, reply=reply)


def offer(store: Store, job: Job, limit: int = 100, **more: object) -> Accepted | ClipError:
    inputs = Inputs(["x"] * job.total)
    return store.run(ops.accept([Submission(job, inputs, limit, listed=True, **more)]))[0]  # type: ignore[arg-type]


def accepted(store: Store, *jobs: Job) -> list[str]:
    for job in jobs:
        assert isinstance(offer(store, job), Accepted)
    return [job.id for job in jobs]


def claim(store: Store, *ids: str, worker: str = "w") -> list[str]:
    return [claimed.reason for claimed in store.run(ops.claim(ids, worker, 3))]


def finish(store: Store, job_id: str, worker: str = "w") -> bool:
    return store.run(ops.finish([Ending(job_id, State.SUCCEEDED, DONE, 1)], worker))[0]


def load(store: Store, lane: Lane = Lane.BACKGROUND) -> int:
    return int(store.client.hget("cq:load", f"{MODEL}:{lane}") or 0)


# Accepting


def test_one_refusal_among_submissions_harms_no_other(store: Store) -> None:
    submissions = [Submission(new(total), Inputs(["x"] * total), limit=5) for total in (3, 3, 2)]
    results = store.run(ops.accept(submissions))
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
    taken = store.run(ops.accept([submission]))[0]
    assert isinstance(taken, Accepted)
    claimed = store.run(ops.claim([job.id], "w", 3))[0]
    assert claimed.inputs == submission.inputs
    assert claimed.job is not None
    assert (claimed.job.kind, claimed.job.model, claimed.job.total) == (job.kind, MODEL, 2)
    assert (claimed.job.created, claimed.job.deadline) == (taken.created, taken.created + 60_000)


def test_large_inputs_are_fetched_apart_from_the_claim(store: Store) -> None:
    job = new()
    store.run(ops.accept([Submission(job, Inputs([bytes(ops.INLINE)]), 100)]))
    assert store.run(ops.claim([job.id], "w", 3))[0].inputs is None
    assert store.run(ops.inputs(job.id)) == Inputs([bytes(ops.INLINE)])


def test_an_idempotency_key_lives_exactly_as_long_as_its_job(store: Store) -> None:
    job = new()
    offer(store, job, idempotency="k", digest="d")
    assert store.client.pttl("cq:idem:me:k") == -1, "an hour in the queue must not make a repeat a second job"
    claim(store, job.id)
    finish(store, job.id)
    assert store.client.pttl("cq:idem:me:k") == pytest.approx(60_000, abs=5_000)
    assert store.run(ops.seen("me", "k", "d")) == job.id
    with pytest.raises(KeyReused):
        store.run(ops.seen("me", "k", "other"))


def test_a_job_that_a_repeat_was_answered_with_is_not_forgotten(store: Store) -> None:
    first, second = new(), new()
    offer(store, first, idempotency="k", digest="d")
    again = offer(store, second, idempotency="k", digest="d")
    assert isinstance(again, Accepted)
    assert (again.again, again.job_id) == (True, first.id)
    store.run(ops.forget([first.id]))  # the first one's message could not be sent, and its caller was told so
    assert store.run(ops.view(first.id)).job.state is State.QUEUED


def test_a_forgotten_job_leaves_nothing_behind(store: Store) -> None:
    job = new()
    offer(store, job, idempotency="k", digest="d")
    store.run(ops.watch(job.id, "list"))
    store.run(ops.forget([job.id]))
    assert load(store) == 0
    assert set(store.client.keys()) == {b"cq:load"}


# Ending


def test_a_late_workers_answer_changes_nothing(store: Store) -> None:
    (job_id,) = accepted(store, new())
    claim(store, job_id, worker="paused")
    store.run(ops.reconcile(MODEL, 0, 3, 3, HOUR))  # its lease is over
    claim(store, job_id, worker="other")
    assert not finish(store, job_id, "paused")
    assert finish(store, job_id, "other")
    assert not finish(store, job_id, "other")
    assert store.client.llen("r") == 1


def test_a_job_that_its_worker_does_not_know_of_is_taken_from_it(store: Store) -> None:
    """A store that loses its last writes forgets that the job has ended, and its worker lives and has none of it."""
    forgotten, kept = accepted(store, new(), new())
    claim(store, forgotten, kept, worker="w")
    for job_id in (forgotten, kept):
        store.client.hset(f"cq:job:{job_id}", "started", 1)
    store.run(ops.beat("w", b"info", HOUR, [(kept, 0, 0)]))
    store.run(ops.reconcile(MODEL, 0, 3, 3, 60))
    states = [store.run(ops.view(job_id)).job.state for job_id in (forgotten, kept)]
    assert states == [State.QUEUED, State.RUNNING]
    assert not finish(store, forgotten, "w")
    claim(store, forgotten, worker="w")
    assert finish(store, forgotten, "w")


def test_a_job_just_claimed_is_not_neglected_before_the_first_heartbeat(store: Store) -> None:
    (job_id,) = accepted(store, new())
    store.run(ops.beat("w", b"info", HOUR, []))
    claim(store, job_id, worker="w")
    store.run(ops.reconcile(MODEL, 0, 3, 3, 60))
    assert store.run(ops.view(job_id)).job.state is State.RUNNING


def test_an_ending_tells_the_answer_with_the_wake_up(store: Store) -> None:
    (job_id,) = accepted(store, new())
    claim(store, job_id)
    finish(store, job_id)
    note = store.client.lpop("r")
    view, answer = store.run(ops.outcome(job_id))
    assert note[:32].decode() == job_id
    assert note[32:] == store.client.get(f"cq:out:{job_id}")
    assert answer == DONE
    assert view is not None
    assert view.job.state is State.SUCCEEDED


def test_lists_that_nobody_reads_stay_bounded_and_end(store: Store) -> None:
    store.client.rpush("r", *range(20_000))
    (job_id,) = accepted(store, new())
    store.run(ops.cancel(job_id, "me"))
    assert store.client.llen("r") == 20_000
    assert 0 < store.client.pttl("r") <= 60_000


def test_a_watch_on_a_job_that_has_ended_ends_with_its_record(store: Store) -> None:
    (job_id,) = accepted(store, new())
    store.run(ops.cancel(job_id, "me"))
    assert store.run(ops.watch(job_id, "list"))
    assert 0 < store.client.pttl(f"cq:watch:{job_id}") <= 60_000
    assert not store.run(ops.watch("0" * 32, "list"))


def test_only_its_owner_sees_or_ends_a_job(store: Store) -> None:
    (job_id,) = accepted(store, new())
    for op in (ops.cancel(job_id, "another"), ops.view(job_id, "another"), ops.view("0" * 32)):
        with pytest.raises(UnknownJob):
            store.run(op)
    assert store.run(ops.view(job_id, "me")).job.state is State.QUEUED


# Lines and lists


def test_places_in_line_are_by_arrival_and_survive_a_lost_worker(store: Store) -> None:
    ids = accepted(store, new(), new(), new())
    for place, job_id in enumerate(ids):
        store.client.zadd(f"cq:queued:{MODEL}:background", {job_id: place})
        store.client.hset(f"cq:job:{job_id}", "created", place)
    claim(store, ids[0], ids[1])
    assert store.run(ops.view(ids[2])).position == 0
    store.run(ops.reconcile(MODEL, 0, 3, 3, HOUR))
    assert [store.run(ops.view(i)).position for i in ids] == [0, 1, 2]


def test_a_worker_with_room_takes_so_many_jobs_and_about_so_many_items(store: Store) -> None:
    accepted(store, *(new(4) for _ in range(6)))
    assert len(store.run(ops.waiting(MODEL, Lane.BACKGROUND, 64, 10))) == 3
    assert len(store.run(ops.waiting(MODEL, Lane.BACKGROUND, 2, 1000))) == 2
    assert store.run(ops.waiting(MODEL, Lane.INTERACTIVE, 64, 10)) == []


def test_a_record_that_was_evicted_does_not_stay_in_line_or_in_the_load(store: Store) -> None:
    ids = accepted(store, new(4), new(2))
    store.client.delete(f"cq:job:{ids[0]}")
    assert store.run(ops.waiting(MODEL, Lane.BACKGROUND, 64, 100)) == [ids[1]]
    store.run(ops.reconcile(MODEL, 0, 3, 3, HOUR))
    assert store.client.zrange(f"cq:open:{MODEL}", 0, -1) == [ids[1].encode()]
    claim(store, ids[1])
    finish(store, ids[1])
    store.run(ops.reconcile(MODEL, 0, 3, 3, HOUR))
    assert load(store) == 0


def test_a_list_is_paged_in_order_while_jobs_come_and_expire(store: Store) -> None:
    ids = accepted(store, *(new() for _ in range(7)))
    for place, job_id in enumerate(ids):  # their times of arrival, a millisecond apart
        store.client.zadd("cq:jobs:me", {job_id: 1000 + place})
    page, cursor = store.run(ops.mine("me", None, 3, ""))
    assert [job.id for job in page] == ids[:3:-1]
    store.client.delete(f"cq:job:{ids[4]}", f"cq:job:{ids[3]}")  # the cursor's own, and the next
    store.client.zrem("cq:jobs:me", ids[4])
    late = accepted(store, new())
    page, cursor = store.run(ops.mine("me", None, 3, cursor))
    assert [job.id for job in page] == ids[2::-1]
    assert [job.id for job in store.run(ops.mine("me", None, 1, ""))[0]] == late
    assert store.run(ops.mine("me", State.FAILED, 3, "")) == ([], "")
    assert store.run(ops.mine("another", None, 3, ""))[0] == []


def test_an_owners_list_forgets_what_has_expired(store: Store) -> None:
    for job_id in accepted(store, *(new(ttl=1) for _ in range(6))):
        store.run(ops.cancel(job_id, "me"))
    wait_for(lambda: not store.client.keys("cq:job:*"), 5, "the records to expire")
    accepted(store, new(), new(), new())
    assert store.client.zcard("cq:jobs:me") == 3
    assert 0 < store.client.pttl("cq:jobs:me") <= 32 * 86400 * 1000


def test_a_worker_is_there_as_long_as_its_lease(store: Store) -> None:
    info = WorkerInfo("w", "host", 1, "cpu", 0.0)
    store.run(ops.beat("w", info.pack(), 60, []))
    store.run(ops.beat("gone", info.pack(), 60, []))
    store.client.delete("cq:worker:gone")
    assert store.run(workers()) == [info]
    assert store.client.smembers("cq:workers") == {b"w"}
    store.run(ops.goodbye("w"))
    assert store.run(workers()) == []
    assert store.client.keys() == []


# The reconciler


def test_a_round_sends_lost_messages_in_full_and_rings_once_for_the_background(store: Store) -> None:
    interactive = accepted(store, *(new(lane=Lane.INTERACTIVE) for _ in range(70)))
    accepted(store, *(new() for _ in range(70)))
    for job_id in interactive:
        store.client.hset(f"cq:job:{job_id}", "sent", 0)
    for key in store.client.keys("cq:job:*"):
        store.client.hset(key, "sent", 0)
    turn = Round([MODEL, "another"], Settings())
    while (op := turn.op) is not None:
        turn.turn(store.run(op))
    sent = {lane: [len(ids) for _, to, ids in turn.resend if to is lane] for lane in Lane}
    assert sent == {Lane.INTERACTIVE: [64, 6], Lane.BACKGROUND: [64], Lane.BULK: []}
    assert {i for _, to, ids in turn.resend if to is Lane.INTERACTIVE for i in ids} == set(interactive)


def test_a_round_goes_through_all_pages(store: Store) -> None:
    accepted(store, *(new(lane=Lane.INTERACTIVE) for _ in range(5)))
    seen: list[str] = []
    offset = 0
    while offset >= 0:
        op = ops.reconcile(MODEL, offset, 3, 0, HOUR)
        command = [*op.commands[0]]
        command[command.index(500)] = 2  # jobs a page
        page = store.run(ops.Op([tuple(command)], op.parse))
        seen += page.resend.get(Lane.INTERACTIVE, [])
        offset = page.offset
    assert len(seen) == len(set(seen)) == 5


def test_one_at_a_time_reconciles(store: Store) -> None:
    assert store.run(take_turn("a"))
    assert not store.run(take_turn("b"))


def test_who_lost_sight_of_the_store_waits_for_a_lease_before_it_calls_anyone_dead() -> None:
    patience = Patience(Settings(lease=0.6))
    assert not patience.over
    wait_for(lambda: patience.over, 5)
    patience.lost_sight()
    assert not patience.over


# The connection


def test_scripts_that_the_server_forgot_are_loaded_again(store: Store) -> None:
    (job_id,) = accepted(store, new())
    store.client.script_flush()
    assert store.run(ops.view(job_id)).job.id == job_id


async def test_a_store_that_is_away_is_unavailable_and_its_password_is_not_told() -> None:
    settings = Settings(redis_url=f"redis://:s3cr3t@127.0.0.1:{free_port()}/0")  # type: ignore[arg-type]
    store, other = Store.connect(settings), AsyncStore.connect(settings)
    with pytest.raises(Unavailable) as told:
        store.run(workers())
    with pytest.raises(Unavailable) as told_too:
        await other.run(workers())
    for error in (told.value, told_too.value):
        assert "s3cr3t" not in str(error)
        assert error.retry_after
    store.close()
    await other.close()


async def test_after_a_failure_no_idle_connection_is_used_again() -> None:
    server = fakeredis.FakeServer()
    client = fakeredis.FakeAsyncRedis(server=server)
    store = AsyncStore(client)
    await store.run(workers())
    idle = client.connection_pool._available_connections[0]
    assert idle.is_connected
    server.connected = False
    with pytest.raises(Unavailable):
        await store.run(workers())
    assert not idle.is_connected
    server.connected = True
    assert await store.run(workers()) == []
    await store.close()
