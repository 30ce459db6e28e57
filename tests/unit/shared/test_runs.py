"""Runs that workers lead, in the store: in no lane, taken by one worker, and looked after."""

from __future__ import annotations

import pytest

from clip_queue.shared import ops, runs
from clip_queue.shared.errors import KeyReused, QueueFull, StoreFull, TooLarge, Unreadable, WorkerLost
from clip_queue.shared.held import ByteLimits
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.reconciler import RUNS, acquire_turn
from clip_queue.shared.store import Store
from clip_queue.shared.submissions import Accepted

MODEL = "m"


def offer(store: Store, output: str = "/out", owner: str = "me", limit: int = 10, **more: object) -> Accepted:
    job = Job(Kind.EMBED_DATASET, MODEL, 0, Lane.BULK, owner=owner, ttl=60_000)
    request = runs.RunRequest(["/in"], output, {"dtype": "float32"})
    return store.execute(runs.accept_run(runs.RunSubmission(job, request, limit, **more)))  # type: ignore[arg-type]


def look(store: Store, job_id: str) -> Job:
    return store.execute(ops.view(job_id)).job


def lead(store: Store, job_id: str, worker: str = "w") -> None:
    store.execute(ops.beat(worker, b"", 60, []))
    (claimed,) = store.execute(ops.claim([job_id], worker, 3, ops.Suspicion.ALL))
    assert claimed.reason == "yours", claimed.reason


def reconcile(store: Store, max_attempts: int = 3, neglected: float = 60) -> int:
    return store.execute(runs.reconcile_runs(max_attempts, neglected))


def test_a_run_is_in_no_lane_that_an_earlier_release_looks_at(store: Store) -> None:
    job = offer(store).job_id
    keys = {key.decode() for key in store.client.keys("*")}
    assert not {key for key in keys if key.startswith(("cq:open:", "cq:queued:"))}
    assert "cq:runs" in keys
    assert not store.client.hget("cq:load", f"{MODEL}:bulk")
    assert store.client.ttl(f"cq:job:{job}") == store.client.ttl(f"cq:in:{job}") == -1, "it does not expire by itself"
    page = store.execute(ops.reconcile(MODEL, 0, 3, 0, 0))
    assert page.resend == {}
    # What it became of also keeps out of there.
    lead(store, job)
    store.execute(ops.release([job], "w"))
    assert not store.client.keys("cq:queued:*")


def test_inputs_are_read_as_they_were_written() -> None:
    request = runs.RunRequest(["/in/é", "s3://b/a"], "/out", {"limit": 3}, confined=False)
    assert runs.RunRequest.from_inputs(request.to_inputs()) == request
    later = Inputs([b'{"source":["/in"],"output":"/o","options":{},"confined":true,"new":1}'])
    assert runs.RunRequest.from_inputs(later).confined
    for broken in (b"{", b"[]", b'{"source":"/in","output":"/o"}'):
        with pytest.raises(Unreadable):
            runs.RunRequest.from_inputs(Inputs([broken]))


def test_a_worker_gets_the_oldest_of_its_models(store: Store) -> None:
    first, second = offer(store, "/a").job_id, offer(store, "/b").job_id
    store.client.zadd("cq:runs", {first: 1, second: 2})
    assert store.execute(runs.peek_run(["other"])) is None
    assert store.execute(runs.peek_run(["other", MODEL])) == first
    lead(store, first)
    assert store.execute(runs.peek_run([MODEL])) == second
    lead(store, second)
    assert store.execute(runs.peek_run([MODEL])) is None


def test_who_has_no_run_under_way_goes_before_who_has(store: Store) -> None:
    mine = [offer(store, f"/{i}").job_id for i in range(3)]
    theirs = offer(store, "/theirs", owner="you").job_id
    store.client.zadd("cq:runs", {job: i for i, job in enumerate([*mine, theirs])})
    lead(store, mine[0])
    assert store.execute(runs.peek_run([MODEL])) == theirs
    lead(store, theirs)
    assert store.execute(runs.peek_run([MODEL])) == mine[1]


def test_two_runs_into_one_output_are_one_too_many(store: Store) -> None:
    first = offer(store).job_id
    with pytest.raises(runs.OutputBusy, match=first):
        offer(store)
    with pytest.raises(runs.OutputBusy) as other:
        offer(store, owner="you")
    assert first not in other.value.message
    store.execute(ops.cancel(first, "me"))
    offer(store)


def test_there_is_a_limit_to_unfinished_runs_and_to_their_bytes(store: Store) -> None:
    first = offer(store, "/a", limit=1).job_id
    with pytest.raises(QueueFull, match="1 runs have not ended") as full:
        offer(store, "/b", limit=1)
    assert full.value.retry_after
    store.execute(ops.cancel(first, "me"))
    offer(store, "/b", limit=1)
    with pytest.raises(TooLarge):
        offer(store, "/c", bytes=ByteLimits(500))
    with pytest.raises(StoreFull):
        offer(store, "/c", bytes=ByteLimits(1500))


def test_what_it_holds_is_counted_anew_as_it_was_and_freed(store: Store) -> None:
    job = offer(store).job_id
    held = store.client.hgetall("cq:held")
    assert int(held[b"me"]) > 768
    store.execute(ops.reconcile(MODEL, 0, 3, 0, 0))  # its first page recounts
    assert store.client.hget("cq:held", "me") == held[b"me"]
    store.execute(ops.cancel(job, "me"))
    assert int(store.client.hget("cq:held", "me")) < int(held[b"me"]) + 768
    store.client.delete("cq:recount")
    before = store.client.hget("cq:held", "me")
    store.execute(ops.reconcile(MODEL, 0, 3, 0, 0))
    assert store.client.hget("cq:held", "me") == before, "one that has ended counts in its bucket only"


def test_an_idempotency_key_makes_one_run(store: Store) -> None:
    first = offer(store, idempotency="k", digest="d" * 64)
    again = offer(store, idempotency="k", digest="d" * 64)
    assert (again.job_id, again.duplicate) == (first.job_id, True)
    with pytest.raises(KeyReused):
        offer(store, "/b", idempotency="k", digest="e" * 64)
    assert store.client.ttl("cq:idem:me:k") == -1
    store.execute(ops.cancel(first.job_id, "me"))
    assert store.client.ttl("cq:idem:me:k") > 0


def test_a_run_whose_worker_is_dead_waits_for_another(store: Store) -> None:
    job = offer(store).job_id
    lead(store, job)
    assert reconcile(store) == 0
    store.execute(ops.deregister("w"))
    assert reconcile(store) == 1
    assert (look(store, job).state, look(store, job).worker) == (State.QUEUED, "")
    lead(store, job, "x")
    assert store.execute(runs.write_progress(job, "w", 9, {}, advanced=True)) == (State.RUNNING, False)
    assert not store.execute(ops.finish([ops.Completion(job, State.SUCCEEDED, JobResult())], "w"))[0]
    assert look(store, job).attempts == 2


def test_a_run_that_its_live_worker_does_not_name_waits_for_another(store: Store) -> None:
    job = offer(store).job_id
    lead(store, job)
    store.client.hset(f"cq:job:{job}", "started", 1)
    store.execute(ops.beat("w", b"", 60, [(job, 1, 0)]))
    assert reconcile(store, neglected=5) == 0
    store.client.hset(f"cq:job:{job}", "held", 1)
    assert reconcile(store, neglected=5) == 1


def test_workers_that_are_lost_count_until_a_shard_is_done(store: Store) -> None:
    job = offer(store).job_id
    for worker in ("a", "b"):
        lead(store, job, worker)
        store.execute(ops.deregister(worker))
        reconcile(store)
    lead(store, job, "c")
    assert store.execute(runs.write_progress(job, "c", 100, {"x": 1}, advanced=False)) == (State.RUNNING, True)
    assert (look(store, job).attempts, look(store, job).total, look(store, job).progress) == (3, 100, {"x": 1})
    store.execute(runs.write_progress(job, "c", 100, {}, advanced=True))
    assert look(store, job).attempts == 1
    for worker in ("c", "d", "e"):
        store.execute(ops.deregister(worker))
        reconcile(store)
        if worker != "e":
            lead(store, job, chr(ord(worker) + 1))
    ended = look(store, job)
    assert ended.state is State.FAILED
    assert ended.error
    assert ended.error["code"] == WorkerLost.code
    assert "same submission again" in ended.error["message"]


@pytest.mark.parametrize("running", [False, True])
def test_a_run_expires_also_while_it_is_led(store: Store, running: bool) -> None:
    job = offer(store, deadline_in=1000.0).job_id
    if running:
        lead(store, job)
    reconcile(store)
    assert look(store, job).state is (State.RUNNING if running else State.QUEUED)
    store.client.hset(f"cq:job:{job}", "deadline", 1)
    reconcile(store)
    assert look(store, job).state is State.EXPIRED
    reconcile(store)
    assert store.client.zrange("cq:runs", 0, -1) == []


def test_a_cancelled_run_tells_its_leader(store: Store) -> None:
    job = offer(store).job_id
    lead(store, job)
    store.execute(ops.cancel(job, "me"))
    assert store.execute(ops.beat("w", b"", 60, [(job, 0, 0)])) == [job]
    assert store.execute(runs.write_progress(job, "w", 1, {}, advanced=False)) == (State.CANCELLED, False)


def test_a_finished_run_keeps_its_report_as_long_as_others(store: Store) -> None:
    job = offer(store).job_id
    lead(store, job)
    result = JobResult("f", report={"rows": 3})
    store.execute(ops.finish([ops.Completion(job, State.SUCCEEDED, result, 3, 0)], "w"))
    view, found = store.execute(ops.outcome(job))
    assert view
    assert found
    assert found.report == {"rows": 3}
    assert 0 < store.client.pttl(f"cq:job:{job}") <= 60_000
    assert store.client.pttl(f"cq:out:{job}") > 0


def test_runs_have_turns_of_their_own(store: Store) -> None:
    assert store.execute(acquire_turn("old"))
    assert store.execute(acquire_turn("new", RUNS))
    assert not store.execute(acquire_turn("another", RUNS))


def test_names_of_shards_lead_back_to_the_model() -> None:
    assert runs.led("m") != "m"
    assert runs.is_led(runs.led("m"))
    assert not runs.is_led("m")
    assert runs.model_of(runs.led("m")) == runs.model_of("m") == "m"
