"""The jobs that this worker holds, and those that it gives back to the queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from clip_queue.shared import ops
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import Inputs, Job
from clip_queue.shared.store import Store

log = logging.getLogger(__name__)

STORE_RETRY = 0.5  # seconds between attempts to complete jobs while the store is away


class Task(Protocol):
    """A job in work. ``done`` and ``failed`` count its items; any thread may read them."""

    @property
    def done(self) -> int: ...
    @property
    def failed(self) -> int: ...

    def abandon(self) -> None:
        """Stop soon, and say nothing about the job: it is no longer this worker's. Called from another thread."""


@dataclass(eq=False)
class Lease:
    """A job that this worker holds. ``task`` is None until its work begins; ``ended``: it is not given back."""

    job: Job
    inputs: Inputs | None  # None: too large to come with the claim
    task: Task | None = None
    ended: bool = False


@dataclass
class Claims:
    """What one claim took; ``left_for_alone`` are the ids of jobs that make their last attempt beside no other."""

    leases: list[Lease] = field(default_factory=list)
    left_for_alone: list[str] = field(default_factory=list)


class Leases:
    """For many threads. Every heartbeat renews what is in here.

    A job whose record names this worker and which is not in here would be nobody's, until the reconciler finds that no
    heartbeat names it.
    """

    def __init__(self, store: Store, worker_id: str, max_attempts: int, draining: threading.Event) -> None:
        self._store, self._worker_id, self._max_attempts = store, worker_id, max_attempts
        self._draining = draining
        self._lock = threading.Lock()
        self._held: dict[str, Lease] = {}
        self._to_release: list[str] = []

    @contextmanager
    def claim(self, job_ids: Sequence[str], *, alone: bool = False) -> Iterator[Claims]:
        """Take jobs, as far as they are to be had. What has not ended when the block ends is given back.

        Raises:
            Unavailable: the store is away. It may have carried out the claim and lost the reply, so all that was asked
                for is given back: what another worker holds stays with that worker.
        """
        claims = Claims()
        unheard = list(job_ids)
        try:
            replies = self._store.execute(ops.claim(job_ids, self._worker_id, self._max_attempts, alone=alone))
            claims.leases = [Lease(reply.job, reply.inputs) for reply in replies if reply.job]
            claims.left_for_alone = [i for i, reply in zip(job_ids, replies, strict=True) if reply.reason == "alone"]
            with self._lock:
                self._held.update((lease.job.id, lease) for lease in claims.leases)
            unheard = []
            yield claims
        finally:
            self._give_back(claims.leases, unheard)

    def begin(self, lease: Lease, task: Task) -> bool:
        """Work on a job begins; False: it is no longer this worker's, so there is nothing to do."""
        with self._lock:
            lease.task = task
            return not lease.ended

    def inputs(self, lease: Lease) -> Inputs | None:
        """A job's inputs; None: the store has them no more."""
        return lease.inputs or self._store.execute(ops.inputs(lease.job.id))

    def complete(self, leases: Sequence[Lease], completions: list[ops.Completion]) -> None:
        """End jobs, however long the store is away: what is computed is not computed twice.

        ``leases`` end here whether the store is told of a completion of theirs or not.

        Raises:
            Unavailable: the store is away and this worker is draining.
        """
        while completions:
            try:
                self._store.execute(ops.finish(completions, self._worker_id))
                break
            except Unavailable as error:
                log.warning("completed jobs wait for the store: %s", error.message)
                if self._draining.wait(STORE_RETRY):
                    raise
        with self._lock:
            for lease in leases:
                self._end(lease)

    def tasks(self) -> list[Task]:
        with self._lock:
            return [lease.task for lease in self._held.values() if lease.task]

    def progress(self) -> list[tuple[str, int, int]]:
        """(id, items done, items failed) of every job that is held."""
        with self._lock:
            held = [(job_id, lease.task) for job_id, lease in self._held.items()]
        return [(job_id, task.done if task else 0, task.failed if task else 0) for job_id, task in held]

    def revoke(self, job_ids: Sequence[str]) -> None:
        """These are no longer this worker's (cancelled, or another's by now): spend nothing more on them."""
        with self._lock:
            leases = [self._held[job_id] for job_id in job_ids if job_id in self._held]
            for lease in leases:
                self._end(lease)
        for lease in leases:
            if lease.task:
                lease.task.abandon()

    def give_back_all(self) -> None:
        """Stop everything and give it back."""
        with self._lock:
            leases = list(self._held.values())
        self._give_back(leases)
        for lease in leases:
            if lease.task:
                lease.task.abandon()

    def to_release(self) -> list[str]:
        """Jobs to give back to the store; the caller reports them as :meth:`released` once that is done."""
        with self._lock:
            return list(self._to_release)

    def released(self, job_ids: Sequence[str]) -> None:
        with self._lock:
            self._to_release = [job_id for job_id in self._to_release if job_id not in set(job_ids)]

    def _give_back(self, leases: Sequence[Lease], unheard: Sequence[str] = ()) -> None:
        """Leave jobs to the heartbeat, which releases them in the store."""
        with self._lock:
            self._to_release += [job_id for job_id in unheard if job_id not in self._held]
            for lease in leases:
                if not lease.ended:
                    self._end(lease)
                    self._to_release.append(lease.job.id)

    def _end(self, lease: Lease) -> None:
        lease.ended = True
        if self._held.get(lease.job.id) is lease:  # the job may have come back to this worker, with another lease
            del self._held[lease.job.id]
