"""The lease of a run that a command leads. The run itself is a job in the store (``embed_dataset``): its progress can
be polled like any job's, and cancelling it stops the run. No worker can take it: the command's process holds it."""

from __future__ import annotations

import logging
import threading
import time

from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.run.progress import Progress
from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError, Unavailable
from clip_queue.shared.job import Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store

log = logging.getLogger(__name__)

LEASE = 15.0  # seconds after which the run of a silent command has failed
INTERVAL = 3.0  # seconds without a renewal after which the lease's own thread renews it
JOIN_TIMEOUT = 10.0  # seconds until the thread has ended, which may wait for the store


class Stopped(Exception):
    """The run was told to stop, or its job was cancelled."""


class RunLease:
    """Holds the job of a run. Its methods raise :class:`clip_queue.shared.errors.Unavailable` while the store is away.

    The runner renews it on its way. A thread does while the runner is somewhere else, in one operation on a slow file
    system: it keeps the lease with the progress that was told last.
    """

    keeps_shards = False  # a command that ends leaves no shards behind

    def __init__(
        self,
        store: Store,
        plan: RunPlan,
        owner: str,
        settings: Settings,
        *,
        interval: float = INTERVAL,
    ) -> None:
        self._store, self._plan, self._owner = store, plan, owner
        self._ttl = int(settings.result_ttl * 1000)
        self._interval = interval
        self._job = self._new_job()
        self._leader = f"run-{self._job.id}"
        self._lock = threading.Lock()  # of all below, and so that one thread renews at a time
        self._cancelled = False
        self._died: BaseException | None = None  # what the thread ended by
        self._renewed = 0.0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="run-lease", daemon=True)

    def renew(self, progress: Progress) -> None:
        """Renew the lease and write the progress. Raises :class:`Stopped` if the job was cancelled."""
        if self._died:
            raise RuntimeError("the thread of the run's lease died") from self._died
        with self._lock:
            job = self._job
            job.total, job.done, job.failed = progress.total or 0, progress.done, progress.failed
            job.progress = progress.to_json()
            try:
                if not self._cancelled:
                    self._renew()
            finally:
                if not self._thread.ident:
                    self._thread.start()
            if self._cancelled:
                raise Stopped

    def end(self, progress: Progress, *, stopped: bool, error: ClipError | None) -> None:
        """End the job and the lease."""
        self._ending.set()
        if self._thread.ident:
            self._thread.join(JOIN_TIMEOUT)
        state = State.CANCELLED if stopped else State.FAILED if error else State.SUCCEEDED
        result = JobResult(fingerprint=self._plan.model.fingerprint, error=error.to_wire() if error else None)
        completion = ops.Completion(self._job.id, state, result, progress.done, progress.failed)
        self._store.execute(ops.finish([completion], self._leader))
        self._store.execute(ops.deregister(self._leader))

    def _renew(self) -> None:
        """The caller holds the lock."""
        state = self._store.execute(ops.renew_run(self._job, self._leader, LEASE))
        self._renewed = time.monotonic()
        if state is State.CANCELLED:
            self._cancelled = True
        elif state is State.FAILED:  # this process was paused, or cut off, for longer than its lease
            self._job = self._new_job()

    def _keep(self) -> None:
        try:
            while not self._ending.wait(self._interval):
                with self._lock:
                    if self._cancelled or time.monotonic() - self._renewed < self._interval:
                        continue
                    try:
                        self._renew()
                    except Unavailable as error:
                        log.info("the run's lease could not be renewed: %s", error.message)
        except BaseException as error:
            log.critical("the thread of the run's lease died", exc_info=True)
            self._died = error

    def _new_job(self) -> Job:
        return Job(
            kind=Kind.EMBED_DATASET,
            model=self._plan.model.name,
            total=self._plan.rows or 0,
            lane=Lane.BULK,
            owner=self._owner,
            ttl=self._ttl,
        )
