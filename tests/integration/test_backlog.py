"""What waits costs the store nothing: its operations look at what is due, and at what they are about."""

from __future__ import annotations

from contextlib import closing

from clip_queue.shared import ops, submissions
from clip_queue.shared.census import census
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.messages import MESSAGE
from clip_queue.shared.ops import Completion
from clip_queue.shared.reconciler import ReconcilePass
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.shared.submissions import Accepted, Submission
from tests.harness import Stack

MODEL = "emoji-mini"
FEW, MANY = 2_000, 40_000
DONE = JobResult("fingerprint", b"\0\0\x80\x3f", 1)


def accept(store: Store, jobs: int) -> list[str]:
    """Jobs of one text that wait in the background, half of them with a deadline."""
    ids: list[str] = []
    while jobs:
        some = [
            Job(Kind.EMBED_TEXT, MODEL, 1, Lane.BACKGROUND, owner="me", ttl=60_000) for _ in range(min(jobs, MESSAGE))
        ]
        given = [
            Submission(job, Inputs(["x"]), 10**9, listed=True, deadline_in=3600.0 * (number % 2))
            for number, job in enumerate(some)
        ]
        assert all(isinstance(each, Accepted) for each in store.execute(submissions.accept(given)))
        ids += [job.id for job in some]
        jobs -= len(some)
    return ids


def asked(store: Store) -> int:
    """How many commands the life of a few jobs and two passes of the reconciler take of the server."""
    store.client.delete("cq:recount")
    store.client.config_resetstat()
    (job, other) = accept(store, 2)
    for _ in range(2):
        reconciling = ReconcilePass([MODEL], Settings())
        while (op := reconciling.op) is not None:
            reconciling.advance(store.execute(op))
    store.execute(ops.peek_queued(MODEL, Lane.BACKGROUND, 64, 256))
    assert [each.reason for each in store.execute(ops.claim([job], "w", 3))] == ["yours"]
    store.execute(ops.view(other))
    store.execute(census([MODEL]))
    assert store.execute(ops.finish([Completion(job, State.SUCCEEDED, DONE, 1)], "w")) == [True]
    store.execute(ops.cancel(other, "me"))
    return sum(int(each["calls"]) for each in store.client.info("commandstats").values())


def test_a_long_queue_costs_the_store_no_more_than_a_short_one(own_stack: Stack) -> None:
    with closing(Store(own_stack.valkey.client())) as store:
        accept(store, FEW)
        short = asked(store)
        accept(store, MANY - FEW)
        long = asked(store)
    assert long <= 1.1 * short, (short, long)
