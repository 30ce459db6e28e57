"""Short calls of the store's operations."""

from __future__ import annotations

from clip_queue.shared import ops, submissions
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.ops import Completion
from clip_queue.shared.store import Store
from clip_queue.shared.submissions import Accepted, Submission

HOUR = 3600.0
MODEL = "m"
DONE = JobResult("fingerprint", b"\0\0\x80\x3f", 1)


def new(total: int = 1, lane: Lane = Lane.BACKGROUND, owner: str = "me", ttl: int = 60_000, reply: str = "r") -> Job:
    return Job(Kind.EMBED_TEXT, MODEL, total, lane, owner=owner, ttl=ttl, reply=reply)


def offer(store: Store, job: Job, limit: int = 100, **more: object) -> Accepted | ClipError:
    inputs = Inputs(["x"] * job.total)
    return store.execute(submissions.accept([Submission(job, inputs, limit, listed=True, **more)]))[0]  # type: ignore[arg-type]


def accepted(store: Store, *jobs: Job) -> list[str]:
    for job in jobs:
        assert isinstance(offer(store, job), Accepted)
    return [job.id for job in jobs]


def claim(store: Store, *ids: str, worker: str = "w") -> list[str]:
    return [claimed.reason for claimed in store.execute(ops.claim(ids, worker, 3))]


def finish(store: Store, job_id: str, worker: str = "w") -> bool:
    return store.execute(ops.finish([Completion(job_id, State.SUCCEEDED, DONE, 1)], worker))[0]


def load(store: Store, lane: Lane = Lane.BACKGROUND) -> int:
    return int(store.client.hget("cq:load", f"{MODEL}:{lane}") or 0)
