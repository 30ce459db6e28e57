"""The lease of a run. The run itself is a job in the store (``embed_dataset``): its progress can be polled like any
job's, and cancelling it stops the run. No worker can take it: the command's process holds it."""

from __future__ import annotations

from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.run.progress import Progress
from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store

LEASE = 15.0  # seconds after which the run of a silent command has failed


class Stopped(Exception):
    """The run was told to stop, or its job was cancelled."""


class RunLease:
    """Holds the job of a run. Every method raises :class:`clip_queue.shared.errors.Unavailable` while the store is
    away."""

    def __init__(self, store: Store, plan: RunPlan, owner: str, settings: Settings) -> None:
        self._store, self._plan, self._owner = store, plan, owner
        self._ttl = int(settings.result_ttl * 1000)
        self._job = self._new_job()
        self._leader = f"run-{self._job.id}"

    def renew(self, progress: Progress) -> None:
        """Renew the lease and write the progress. Raises :class:`Stopped` if the job was cancelled."""
        job = self._job
        job.total, job.done, job.failed = progress.total or 0, progress.done, progress.failed
        job.progress = progress.to_json()
        state = self._store.execute(ops.renew_run(job, self._leader, LEASE))
        if state is State.CANCELLED:
            raise Stopped
        if state is State.FAILED:  # this process was paused, or cut off, for longer than its lease
            self._job = self._new_job()

    def end(self, progress: Progress, *, stopped: bool, error: ClipError | None) -> None:
        """End the job and the lease."""
        state = State.CANCELLED if stopped else State.FAILED if error else State.SUCCEEDED
        result = JobResult(fingerprint=self._plan.model.fingerprint, error=error.to_wire() if error else None)
        completion = ops.Completion(self._job.id, state, result, progress.done, progress.failed)
        self._store.execute(ops.finish([completion], self._leader))
        self._store.execute(ops.deregister(self._leader))

    def _new_job(self) -> Job:
        return Job(
            kind=Kind.EMBED_DATASET,
            model=self._plan.model.name,
            total=self._plan.rows or 0,
            lane=Lane.BULK,
            owner=self._owner,
            ttl=self._ttl,
        )
