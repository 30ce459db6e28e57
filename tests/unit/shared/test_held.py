"""The bytes that jobs hold in the store: counted, bounded together and for each owner, and right after any loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_queue.shared import held, ops, submissions
from clip_queue.shared.errors import ClipError, StoreFull, TooLarge
from clip_queue.shared.held import RECORD, ROW, ByteLimits
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.ops import Completion
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import LUA, PARTS, Store, call
from clip_queue.shared.submissions import Accepted, Submission
from clip_queue.shared.wire import pack_inputs, pack_result

from .store_calls import HOUR, MODEL, claim

SIZE = 10_000  # bytes of the inputs of a job
RESULT = JobResult("fingerprint", bytes(3000), 750)


def offer(store: Store, owner: str, limits: ByteLimits, *, size: int = SIZE, **more: object) -> tuple[str, object]:
    job = Job(Kind.EMBED_IMAGE, MODEL, 1, Lane.BACKGROUND, owner=owner, ttl=60_000, **more)  # type: ignore[arg-type]
    return job.id, store.execute(submissions.accept([Submission(job, Inputs([bytes(size)]), 100, bytes=limits)]))[0]


def put(store: Store, owner: str = "a", limits: ByteLimits = held.UNLIMITED, **more: object) -> str:
    job_id, result = offer(store, owner, limits, **more)  # type: ignore[arg-type]
    assert isinstance(result, Accepted), result
    return job_id


def refused(store: Store, owner: str, limits: ByteLimits, size: int = SIZE) -> ClipError:
    result = offer(store, owner, limits, size=size)[1]
    assert isinstance(result, ClipError)
    return result


def finish(store: Store, job_id: str, result: JobResult = RESULT) -> None:
    claim(store, job_id)
    assert store.execute(ops.finish([Completion(job_id, State.SUCCEEDED, result, 1)], "w")) == [True]


def sums(store: Store) -> dict[str, int]:
    found = {owner.decode(): int(n) for owner, n in store.client.hgetall("cq:held").items()}
    found.pop("limit", None)
    return found


def pass_time(store: Store) -> None:
    """Let all that is kept expire at once."""
    for second in store.client.zrange("cq:kept", 0, -1):
        store.client.rename(f"cq:kept:{second.decode()}", f"cq:kept:{int(second) - 10_000}")
        store.client.zadd("cq:kept", {str(int(second) - 10_000): int(second) - 10_000})
        store.client.zrem("cq:kept", second)


def reconcile(store: Store, *, anew: bool = False) -> None:
    if anew:
        store.client.delete("cq:recount")
    store.execute(ops.reconcile(MODEL, 0, 3, HOUR, HOUR))


WAITING = RECORD + len(pack_inputs(Inputs([bytes(SIZE)]))) + ROW
KEPT = RECORD + len(pack_result(RESULT))


def test_a_job_counts_for_its_inputs_then_for_its_result_then_for_nothing(store: Store) -> None:
    job_id = put(store)
    assert sums(store) == {"a": WAITING, "*": WAITING}
    finish(store, job_id)
    assert sums(store) == {"a": KEPT, "*": KEPT}
    pass_time(store)
    reconcile(store)
    assert sums(store) == {}
    assert store.client.keys("cq:kept*") == []


def test_one_owner_fills_its_share_and_another_still_has_room(store: Store) -> None:
    limits = ByteLimits(6 * WAITING, 0.5)
    ids = [put(store, "a", limits) for _ in range(3)]
    error = refused(store, "a", limits)
    assert isinstance(error, StoreFull)
    assert (error.status, error.code, error.retry_after) == (429, "store_full", 60)
    assert f"this key may hold {3 * WAITING} bytes" in error.message
    assert f"{3 * WAITING} are held" in error.message
    put(store, "b", limits)
    store.execute(ops.cancel(ids[0], "a"))
    put(store, "a", ByteLimits(6 * WAITING + 4 * RECORD, 0.5))


def test_all_together_fill_the_store_and_are_told_so(store: Store) -> None:
    limits = ByteLimits(3 * WAITING)
    for owner in "abc":
        put(store, owner, limits)
    error = refused(store, "d", limits)
    assert isinstance(error, StoreFull)
    assert "all jobs and results together may hold" in error.message
    assert "(setting max_store_bytes)" in error.message


def test_what_is_kept_makes_room_when_it_expires(store: Store) -> None:
    limits = ByteLimits(WAITING + RECORD)
    finish(store, put(store, limits=limits))
    error = refused(store, "a", limits)
    assert error.retry_after is not None
    assert 55 <= error.retry_after <= 60, "results are kept for a minute here"
    pass_time(store)
    put(store, limits=limits)  # no reconciler is needed


def offer_together(store: Store, owners: str, limits: ByteLimits) -> list[bool]:
    """Whether each job of these owners is accepted, all in one script."""
    jobs = [Job(Kind.EMBED_IMAGE, MODEL, 1, Lane.BACKGROUND, owner=owner, ttl=60_000) for owner in owners]
    offered = [Submission(job, Inputs([bytes(SIZE)]), 100, bytes=limits) for job in jobs]
    return [isinstance(result, Accepted) for result in store.execute(submissions.accept(offered))]


def test_jobs_that_come_together_count_as_those_that_come_one_by_one(store: Store) -> None:
    limits = ByteLimits(5 * WAITING, 0.5)  # two of each owner
    assert offer_together(store, "aababbc", limits) == [True, True, True, False, True, False, True]
    assert sums(store) == {"a": 2 * WAITING, "b": 2 * WAITING, "c": WAITING, "*": 5 * WAITING}
    assert offer_together(store, "cd", limits) == [False, False]
    assert sums(store) == {"a": 2 * WAITING, "b": 2 * WAITING, "c": WAITING, "*": 5 * WAITING}


def test_the_last_of_those_that_come_together_gets_the_room_of_what_has_expired(store: Store) -> None:
    finish(store, put(store))
    pass_time(store)
    assert KEPT < WAITING
    assert offer_together(store, "aaaa", ByteLimits(3 * WAITING)) == [True, True, True, False]
    assert sums(store) == {"a": 3 * WAITING, "*": 3 * WAITING}


def test_a_job_above_the_limit_is_told_not_to_try_again(store: Store) -> None:
    for limits, whose in (ByteLimits(SIZE), "together"), (ByteLimits(2 * SIZE, 0.5), "of this key"):
        error = refused(store, "a", limits)
        assert isinstance(error, TooLarge)
        assert error.status == 413
        assert whose in error.message
    assert sums(store) == {}


def test_room_for_the_result_is_kept_free_while_a_job_waits(store: Store) -> None:
    job = Job(Kind.EMBED_TEXT, MODEL, 1000, Lane.BACKGROUND, owner="a", ttl=60_000)
    submission = Submission(job, Inputs(["x"] * 1000), 2000, bytes=ByteLimits(2**20))
    assert isinstance(store.execute(submissions.accept([submission]))[0], TooLarge), "4 KiB for each vector"
    shard = Job(Kind.EMBED_SHARD, MODEL, 10**6, Lane.BULK, owner="a", ttl=60_000)
    store.execute(submissions.accept([Submission(shard, Inputs(["x"]), 10**9)]))
    assert sums(store)["a"] < 1000, "a shard's vectors go to files"


def test_a_discarded_job_counts_for_nothing(store: Store) -> None:
    store.execute(submissions.discard([put(store)]))
    assert sums(store) == {}


def test_the_result_of_a_synchronous_request_goes_soon_after_its_deadline(store: Store) -> None:
    job = Job(Kind.EMBED_TEXT, MODEL, 1, owner="a", ttl=600_000, reply="r")
    store.execute(submissions.accept([Submission(job, Inputs(["x"]), 9, deadline_in=30)]))
    finish(store, job.id)
    assert 30_000 < store.client.pttl(f"cq:out:{job.id}") <= 35_000
    assert 590_000 < store.client.pttl(f"cq:job:{job.id}") <= 600_000
    assert store.client.zcard("cq:kept") == 2
    assert sums(store)["a"] == KEPT


def test_a_large_result_is_not_in_the_store_twice(store: Store) -> None:
    job = Job(Kind.EMBED_TEXT, MODEL, 1, owner="a", ttl=60_000, reply="r")
    store.execute(submissions.accept([Submission(job, Inputs(["x"]), 9)]))
    finish(store, job.id, JobResult("f", bytes(300_000), 1))
    assert store.client.lrange("r", 0, -1) == [job.id.encode()], "it says that the result is in the store"
    assert store.client.strlen(f"cq:out:{job.id}") > 300_000


def test_a_result_that_no_store_takes_ends_its_job_with_the_reason(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "MAX_RESULT", 2000)
    job_id = put(store)
    finish(store, job_id)
    view, result = store.execute(ops.outcome(job_id))
    assert view is not None
    assert view.job.state is State.FAILED
    assert result is not None
    assert result.error is not None
    assert result.error["code"] == "too_large"
    assert "the store takes at most 2000" in result.error["message"]


# Losses, and processes of an earlier release


def test_jobs_of_an_earlier_release_are_counted_within_a_recount(store: Store) -> None:
    job_id = put(store)
    store.client.hdel(f"cq:job:{job_id}", "bytes")
    store.client.delete("cq:held")
    reconcile(store, anew=True)
    waiting = RECORD + len(pack_inputs(Inputs([bytes(SIZE)])))
    assert sums(store) == {"a": waiting, "*": waiting}
    finish(store, job_id)
    assert sums(store) == {"a": KEPT, "*": KEPT}


def test_what_expires_in_many_seconds_is_not_counted_anew(store: Store) -> None:
    """With results that are kept for a week there are 600,000 of them, which a script reads in three seconds."""
    put(store)
    store.client.zadd("cq:kept", {str(second): second for second in range(10**10, 10**10 + 10_001)})
    store.client.delete("cq:held")
    reconcile(store, anew=True)
    assert "*" not in sums(store)
    store.client.zrem("cq:kept", 10**10)
    reconcile(store, anew=True)
    assert sums(store)["*"] == WAITING
    assert store.client.zcard("cq:kept") == 0, "none of them had a bucket"


def test_a_job_that_was_never_counted_is_not_subtracted(store: Store) -> None:
    job_id = put(store)
    store.client.hdel(f"cq:job:{job_id}", "bytes")
    store.client.delete("cq:held")
    finish(store, job_id)
    assert sums(store) == {"a": KEPT, "*": KEPT}


def test_a_job_that_an_earlier_release_ended_does_not_count_for_ever(store: Store) -> None:
    job_id = put(store)
    for key, member in (f"cq:open:{MODEL}", job_id), (f"cq:queued:{MODEL}:background", job_id):
        store.client.zrem(key, member)
    store.client.hset(f"cq:job:{job_id}", "state", "cancelled")  # by a script that counts nothing
    assert sums(store)["a"] == WAITING
    reconcile(store, anew=True)
    assert sums(store) == {}


def test_lost_sums_and_buckets_never_make_a_debt(store: Store) -> None:
    waits, ended = put(store), put(store)
    finish(store, ended)
    store.client.delete("cq:held")
    store.execute(ops.cancel(waits, "a"))
    assert all(n >= 0 for n in sums(store).values())
    pass_time(store)
    reconcile(store)
    assert sums(store) == {}
    finish(store, put(store))
    for key in store.client.keys("cq:kept:*"):
        store.client.delete(key)
    reconcile(store, anew=True)
    assert sums(store) == {}
    assert store.client.zcard("cq:kept") == 0


@pytest.mark.parametrize("deadline_in", [0.0, 1.0, 100.0], ids=["no deadline", "before", "after the record"])
def test_an_answered_request_holds_nothing(store: Store, deadline_in: float) -> None:
    job = Job(Kind.EMBED_TEXT, MODEL, 1, Lane.INTERACTIVE, owner="a", ttl=60_000, reply="r")
    store.execute(submissions.accept([Submission(job, Inputs(["x"]), 100, deadline_in=deadline_in)]))
    finish(store, job.id)
    other = put(store, "b")
    finish(store, other)
    kept = sums(store)["b"]
    store.execute(submissions.forget([job.id, job.id, "0" * 32]))
    assert sums(store) == {"b": kept, "*": kept}
    assert not store.client.keys(f"*{job.id}*")
    reconcile(store, anew=True)
    assert sums(store) == {"b": kept, "*": kept}
    pass_time(store)
    reconcile(store)
    assert sums(store) == {}


def test_what_was_swept_is_not_subtracted_again(store: Store) -> None:
    job = Job(Kind.EMBED_TEXT, MODEL, 1, Lane.INTERACTIVE, owner="a", ttl=60_000, reply="r")
    store.execute(submissions.accept([Submission(job, Inputs(["x"]), 100)]))
    finish(store, job.id)
    pass_time(store)
    reconcile(store)
    put(store, "a")
    before = sums(store)
    store.execute(submissions.forget([job.id]))
    assert sums(store) == before


@pytest.mark.parametrize("state", [State.FAILED, State.EXPIRED])
def test_only_a_request_that_succeeded_is_forgotten(store: Store, state: State) -> None:
    job = Job(Kind.EMBED_TEXT, MODEL, 1, Lane.INTERACTIVE, owner="a", ttl=60_000, reply="r")
    listed = put(store, "a")  # nobody waits for its answer
    store.execute(submissions.accept([Submission(job, Inputs(["x"]), 100)]))
    store.execute(submissions.forget([job.id, listed]))  # it waits yet
    claim(store, job.id)
    store.execute(submissions.forget([job.id, listed]))
    store.execute(ops.finish([Completion(job.id, state, JobResult(error={"code": "x"}), 0, 1)], "w"))
    finish(store, listed)
    before = sums(store)
    store.execute(submissions.forget([job.id, listed]))
    assert sums(store) == before
    assert store.client.exists(f"cq:job:{job.id}", f"cq:job:{listed}") == 2


# The limits


def test_only_several_keys_share_the_store() -> None:
    settings = Settings(max_store_bytes=1000, max_owner_share=0.3)
    one, two = (settings.model_copy(update={"api_keys": ["k"] * n}) for n in (1, 2))
    assert [ByteLimits.of(s).share for s in (settings, one, two)] == [1, 1, 0.3]


def test_without_a_limit_anywhere_all_is_taken(store: Store) -> None:
    put(store, limits=ByteLimits(0))
    store.client.hset("cq:held", "limit", SIZE)  # as a recount derives it from the server's memory
    assert isinstance(offer(store, "a", ByteLimits(0))[1], TooLarge)
    put(store)


# Scripts at maxmemory


@pytest.mark.parametrize("path", sorted(p for p in LUA.glob("*.lua") if p.stem not in PARTS), ids=lambda p: p.stem)
def test_all_scripts_but_those_that_accept_run_when_the_memory_is_full(path: Path) -> None:
    flags = path.read_text().split("\n", 1)[0]
    assert flags == ("#!lua" if path.stem in ("accept", "accept_run") else "#!lua flags=allow-oom")
    assert call(path.stem)[0] == "EVALSHA"
