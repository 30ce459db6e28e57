"""A job executor around a store in memory, and job handlers that a test controls."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from clip_queue.shared import ops, submissions
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.store import Op, Store
from clip_queue.worker.executor.executor import JobExecutor
from tests.harness import wait_for
from tests.unit.worker.models import MODEL, Model

WORKER = "w"


class Losing(Store):
    """A store that loses the reply of the next operation if :attr:`losing`, or is not reachable while :attr:`away`."""

    losing = away = False

    def execute(self, op: Op[Any]) -> Any:
        if self.away:
            raise Unavailable("away")
        out = super().execute(op)
        if self.losing:
            self.losing = False
            raise Unavailable("lost")
        return out


@dataclass
class Parts:
    """An executor with its store and its model."""

    store: Losing
    model: Model
    executor: JobExecutor

    def accept(self, *texts: str, lane: Lane = Lane.INTERACTIVE, kind: Kind = Kind.EMBED_TEXT, to: str = MODEL) -> str:
        job = Job(kind, to, len(texts), lane, ttl=60_000)
        self.store.execute(submissions.accept([submissions.Submission(job, Inputs([*texts]), 1000)]))
        return job.id

    def look(self, job_id: str) -> Job:
        return self.store.execute(ops.view(job_id)).job

    def deliver(self, *job_ids: str, lane: Lane = Lane.INTERACTIVE) -> None:
        self.executor.deliver(MODEL, lane, list(job_ids))

    def in_thread(self, *job_ids: str, lane: Lane = Lane.INTERACTIVE) -> threading.Thread:
        thread = threading.Thread(target=self.deliver, args=job_ids, kwargs={"lane": lane}, daemon=True)
        thread.start()
        return thread

    def release(self) -> None:
        self.executor.engine.release(Lane.INTERACTIVE)

    def held(self) -> list[str]:
        return sorted(job_id for job_id, _, _ in self.executor.leases.progress())


@dataclass
class Handler:
    """A handler that works until it is abandoned or :attr:`finish` is set."""

    job: Job
    done: int = 0
    failed: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    finish: threading.Event = field(default_factory=threading.Event)

    def abandon(self) -> None:
        self.stopped.set()

    def run(self) -> ops.Completion | None:
        wait_for(lambda: self.stopped.is_set() or self.finish.is_set(), 10)
        if self.stopped.is_set():
            return None
        return ops.Completion(self.job.id, State.SUCCEEDED, JobResult(), 7, 1)


def shard(parts: Parts) -> str:
    return parts.accept("where", lane=Lane.BULK, kind=Kind.EMBED_SHARD)
