"""The leases of a worker: the jobs that it holds, and the jobs that it gives back to the queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from clip_queue.shared import ops
from clip_queue.shared.errors import Unavailable, Unreadable
from clip_queue.shared.job import Inputs, Job
from clip_queue.shared.store import Store

log = logging.getLogger(__name__)

STORE_RETRY = 0.5  # seconds between attempts to complete jobs while the store cannot be reached


class Task(Protocol):
    """The work on a job. ``done`` and ``failed`` count its items; any thread may read them."""

    @property
    def done(self) -> int: ...
    @property
    def failed(self) -> int: ...

    def abandon(self) -> None:
        """Stop soon and do not complete the job: it does not belong to this worker any more. For any thread."""


@dataclass(eq=False)
class Lease:
    """A job that this worker holds.

    ``task`` is None until the work on the job begins. ``ended``: the worker does not hold the job any more.
    """

    job: Job
    inputs: Inputs | None  # None: too large to come with the claim
    error: Unreadable | None = None  # why the job cannot be begun
    task: Task | None = None
    ended: bool = False


@dataclass
class Claims:
    """The result of a claim. ``suspects`` are the ids of jobs that were not claimed because they have lost workers."""

    leases: list[Lease] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)


class Leases:
    """The leases of one worker, for many threads. Every heartbeat renews all of them.

    A job whose record in the store names this worker must have its lease in here. Otherwise no heartbeat names the
    job, and it waits until the reconciler finds it.

    Args:
        draining: set when the worker is about to end.
        retry: seconds between attempts to complete jobs while the store cannot be reached.
    """

    def __init__(
        self,
        store: Store,
        worker_id: str,
        max_attempts: int,
        draining: threading.Event,
        *,
        retry: float = STORE_RETRY,
    ) -> None:
        self._store, self._worker_id, self._max_attempts = store, worker_id, max_attempts
        self._draining, self._retry = draining, retry
        self._lock = threading.Lock()
        self._leases: dict[str, Lease] = {}
        self._to_release: list[str] = []

    @contextmanager
    def claim(self, job_ids: Sequence[str], suspicion: ops.Suspicion = ops.Suspicion.SOME) -> Iterator[Claims]:
        """Claim jobs, as far as the store gives them. Leases that have not ended when the block ends are given back.

        Raises:
            Unavailable: the store cannot be reached. It may have carried out the claim, and only the reply was lost.
                So all of ``job_ids`` are given back; a job that another worker holds stays with that worker.
        """
        claims = Claims()
        unanswered = list(job_ids)
        try:
            replies = self._store.execute(ops.claim(job_ids, self._worker_id, self._max_attempts, suspicion))
            claims.leases = [Lease(reply.job, reply.inputs, reply.error) for reply in replies if reply.job]
            claims.suspects = [i for i, reply in zip(job_ids, replies, strict=True) if reply.reason == "suspect"]
            with self._lock:
                self._leases.update((lease.job.id, lease) for lease in claims.leases)
            unanswered = []
            yield claims
        finally:
            self._give_back(claims.leases, unanswered)

    def begin(self, lease: Lease, task: Task) -> bool:
        """Register the work on a job. False: the lease has ended meanwhile, so the work must not begin."""
        with self._lock:
            lease.task = task
            return not lease.ended

    def inputs(self, lease: Lease) -> Inputs | None:
        """The inputs of a job; None if the store does not have them any more. Raises :class:`Unreadable`."""
        return lease.inputs or self._store.execute(ops.inputs(lease.job.id))

    def complete(self, leases: Sequence[Lease], completions: list[ops.Completion]) -> None:
        """Complete jobs, and end their leases.

        While the store cannot be reached, it is tried again, without limit: results must not be computed twice. All
        ``leases`` end, also those that have no completion.

        Raises:
            Unavailable: the store cannot be reached and this worker is draining.
        """
        while completions:
            try:
                self._store.execute(ops.finish(completions, self._worker_id))
                break
            except Unavailable as error:
                log.warning("completed jobs wait for the store: %s", error.message)
                if self._draining.wait(self._retry):
                    raise
        with self._lock:
            for lease in leases:
                self._end(lease)

    def tasks(self) -> list[Task]:
        """The work that has begun."""
        with self._lock:
            return [lease.task for lease in self._leases.values() if lease.task]

    def progress(self) -> list[tuple[str, int, int]]:
        """The progress of every job that this worker holds: (id, items done, items failed)."""
        with self._lock:
            tasks = [(job_id, lease.task) for job_id, lease in self._leases.items()]
        return [(job_id, task.done if task else 0, task.failed if task else 0) for job_id, task in tasks]

    def revoke(self, job_ids: Sequence[str]) -> None:
        """End the leases of jobs that were cancelled or that another worker has now, and stop the work on them."""
        with self._lock:
            leases = [self._leases[job_id] for job_id in job_ids if job_id in self._leases]
            for lease in leases:
                self._end(lease)
        for lease in leases:
            if lease.task:
                lease.task.abandon()

    def give_back_all(self) -> None:
        """Give back all jobs and stop the work on them."""
        with self._lock:
            leases = list(self._leases.values())
        self._give_back(leases)
        for lease in leases:
            if lease.task:
                lease.task.abandon()

    def to_release(self) -> list[str]:
        """The jobs to release in the store. The caller reports them to :meth:`released` when it has done so."""
        with self._lock:
            return list(self._to_release)

    def released(self, job_ids: Sequence[str]) -> None:
        """Forget jobs that have been released in the store."""
        with self._lock:
            self._to_release = [job_id for job_id in self._to_release if job_id not in set(job_ids)]

    def _give_back(self, leases: Sequence[Lease], unanswered: Sequence[str] = ()) -> None:
        """End leases and pass their jobs to the heartbeat, which releases them in the store.

        ``unanswered`` are jobs whose claim was sent and not answered.
        """
        with self._lock:
            self._to_release += [job_id for job_id in unanswered if job_id not in self._leases]
            for lease in leases:
                if not lease.ended:
                    self._end(lease)
                    self._to_release.append(lease.job.id)

    def _end(self, lease: Lease) -> None:
        lease.ended = True
        if self._leases.get(lease.job.id) is lease:  # this worker may have claimed the job again, with another lease
            del self._leases[lease.job.id]
