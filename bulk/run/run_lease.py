"""The run itself as a job in the store (``embed_dataset``): its progress can be polled like any job's, and cancelling
it stops the run. No worker can take it: the command's process leads it."""

from __future__ import annotations

from clip_queue.bulk.output.layout import Plan
from clip_queue.bulk.run.progress import Progress
from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Answer, Job, Kind, Lane, State
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store

LEASE = 15.0  # seconds that a silent command leads its run


class Stopped(Exception):
    """Somebody told the run to stop, or cancelled its job."""


class Lead:
    """Leads the run of ``plan``. Every method raises :class:`clip_queue.shared.errors.Unavailable` while the store is away."""

    def __init__(self, store: Store, plan: Plan, owner: str, settings: Settings) -> None:
        self._store, self._plan, self._owner = store, plan, owner
        self._ttl = int(settings.result_ttl * 1000)
        self._job = self._new_job()
        self._leader = f"run-{self._job.id}"

    @property
    def job_id(self) -> str:
        """For ``GET /jobs/{id}``."""
        return self._job.id

    def renew(self, progress: Progress) -> None:
        """Go on leading, and write how far the run is. Raises :class:`Stopped` where the job was cancelled."""
        job = self._job
        job.total, job.done, job.failed = progress.total or 0, progress.done, progress.failed
        job.progress = progress.to_json()
        state = self._store.run(ops.lead(job, self._leader, LEASE))
        if state is State.CANCELLED:
            raise Stopped
        if state is State.FAILED:  # this process was paused, or cut off, for longer than its lease
            self._job = self._new_job()

    def end(self, progress: Progress, *, stopped: bool, error: ClipError | None) -> None:
        """End the job and let go of it."""
        state = State.CANCELLED if stopped else State.FAILED if error else State.SUCCEEDED
        answer = Answer(fingerprint=self._plan.model.fingerprint, error=error.to_wire() if error else None)
        ending = ops.Ending(self._job.id, state, answer, progress.done, progress.failed)
        self._store.run(ops.finish([ending], self._leader))
        self._store.run(ops.goodbye(self._leader))

    def _new_job(self) -> Job:
        return Job(
            kind=Kind.EMBED_DATASET,
            model=self._plan.model.name,
            total=self._plan.rows or 0,
            lane=Lane.BULK,
            owner=self._owner,
            ttl=self._ttl,
        )
