"""The job executor of a worker process: a message comes, jobs are claimed, embedded and completed.

::

    message ─► claim ─► execution ─► items ─► engine ─► completion ─► reply list
                     └► handler (a kind that another package knows), in the message's thread
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import JobResult, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.worker.executor.execution import JobExecution
from clip_queue.worker.executor.handlers import JobHandler, load_handlers, unsupported
from clip_queue.worker.executor.leases import Lease, Leases
from clip_queue.worker.inference.engine import InferenceEngine

CONCURRENCY = 2  # messages of background or bulk work at once: one feeds while the other completes, or writes
BACKGROUND_ITEMS = 256  # items of background work that such a message takes at a time
BACKGROUND_JOBS = 64
COMPLETIONS = 64  # jobs completed in one round trip
FEED_INTERVAL = 0.02  # seconds that feeding waits for a place before it completes what is over

OverQueue = queue.SimpleQueue[JobExecution]


class JobExecutor:
    """One a process. :meth:`deliver` runs in Celery's threads."""

    def __init__(
        self,
        engine: InferenceEngine,
        store: Store,
        settings: Settings,
        worker_id: str,
        *,
        concurrency: int = CONCURRENCY,
    ) -> None:
        self.id = worker_id
        self.engine = engine
        self.handlers = load_handlers()
        self.draining = threading.Event()
        self.leases = Leases(store, worker_id, settings.max_attempts, self.draining)
        self._store = store
        self._concurrency = {lane: threading.BoundedSemaphore(concurrency) for lane in Lane}
        self._last_attempt = threading.Lock()

    def abandon_handlers(self) -> None:
        """Have handlers stop, in a worker that drains: their jobs take longer than it has. They are given back."""
        for task in self.leases.tasks():
            if not isinstance(task, JobExecution):
                task.abandon()

    def stop(self) -> None:
        """Give back what is left; after the last message has returned."""
        self.leases.give_back_all()
        self._store.close()

    def deliver(self, model: str, lane: Lane, job_ids: list[str]) -> None:
        """A message came. Interactive: do these jobs. Else: there is work in the line of the store.

        A background or bulk message that finds ``concurrency`` others at work does nothing. The jobs are queued in the
        store, and a message at work takes from there as long as there are any. So such work never fills the threads.
        """
        if lane is Lane.INTERACTIVE:
            self._execute(job_ids, self._embed)
            return
        concurrency, do = self._concurrency[lane], self._handle if lane is Lane.BULK else self._embed
        while concurrency.acquire(blocking=False):
            try:
                while ids := self._peek(model, lane):
                    self._execute(ids, do)
            finally:
                concurrency.release()
            if not self._peek(model, lane):  # one that came between the last look and the release
                return

    def _peek(self, model: str, lane: Lane) -> list[str]:
        if self.draining.is_set():
            return []
        jobs, items = (1, 1) if lane is Lane.BULK else (BACKGROUND_JOBS, BACKGROUND_ITEMS)
        return self._store.execute(ops.peek_queued(model, lane, jobs, items))

    def _execute(self, job_ids: list[str], do: Callable[..., list[str]]) -> None:
        """Work on jobs until each is completed, another worker's, or given back.

        A job that has lost workers before makes its last attempt beside no other such job: what shared a lost worker
        with the job to blame is not failed with it.
        """
        for job_id in do(job_ids):
            with self._last_attempt:
                if not self.draining.is_set():
                    do([job_id], alone=True)

    def _handle(self, job_ids: list[str], *, alone: bool = False) -> list[str]:
        """Claim jobs that have handlers and do them; returns the ids that are left for their attempt alone."""
        with self.leases.claim(job_ids, alone=alone) as claims:
            for lease in claims.leases:
                inputs, factory = self.leases.inputs(lease), self.handlers.get(lease.job.kind)
                if factory is None or inputs is None:
                    self.leases.complete([lease], [unsupported(lease.job)])
                    continue
                handler: JobHandler = factory(lease.job, inputs, self.engine)
                if not self.leases.begin(lease, handler):
                    continue
                if self.draining.is_set():
                    handler.abandon()
                if completion := handler.run():
                    self.leases.complete([lease], [completion])
        return claims.left_for_alone

    def _embed(self, job_ids: list[str], *, alone: bool = False) -> list[str]:
        """Claim jobs, embed and complete them; returns the ids that are left for their attempt alone.

        Each job is completed when its own items are done, not when all are.
        """
        pending: dict[str, Lease] = {}
        over = OverQueue()
        with self.leases.claim(job_ids, alone=alone) as claims:
            try:
                for lease in claims.leases:
                    if execution := self._begin(lease, over):
                        pending[lease.job.id] = lease
                        self._feed(execution, lambda: self._complete(over, pending, wait=0))
                    self._complete(over, pending, wait=0)
                while pending:
                    self._complete(over, pending, wait=1.0)
            finally:  # only an error leaves something here: it is given back
                for lease in pending.values():
                    if lease.task:
                        lease.task.abandon()
        return claims.left_for_alone

    def _begin(self, lease: Lease, over: OverQueue) -> JobExecution | None:
        """A job's execution; None: there is nothing to be done for it, and it has ended."""
        job, model = lease.job, self.engine.models.get(lease.job.model)
        inputs = self.leases.inputs(lease)
        if model is None or inputs is None:
            # A message on the wrong queue, or inputs that the store has evicted or a cancellation removed.
            error = ClipError("The job's inputs are gone." if model else "This worker does not serve the job's model.")
            self.leases.complete([lease], [ops.Completion(job.id, State.FAILED, JobResult(error=error.to_wire()))])
            return None
        execution = JobExecution(job, inputs, model.fingerprint, over.put)
        return execution if self.leases.begin(lease, execution) else None

    def _feed(self, execution: JobExecution, meanwhile: Callable[[], None]) -> None:
        """Hand an execution's items to the engine, as it has places for them."""
        lane, model = execution.job.lane, self.engine.models[execution.job.model]
        for index, item in enumerate(execution.inputs.items):
            while not self.engine.acquire(lane, FEED_INTERVAL):
                meanwhile()
            if execution.over:
                self.engine.release(lane)
                return
            self.engine.embed(model, lane, item, execution.item(index))

    def _complete(self, over: OverQueue, pending: dict[str, Lease], wait: float) -> None:
        """Complete, in one round trip, the jobs that are over; wait for the first up to ``wait`` seconds."""
        executions: list[JobExecution] = []
        try:
            executions.append(over.get(timeout=wait) if wait else over.get_nowait())
            while len(executions) < COMPLETIONS:
                executions.append(over.get_nowait())
        except queue.Empty:
            pass
        if executions:
            completions = [execution.completion() for execution in executions if not execution.abandoned]
            leases = [pending[execution.job.id] for execution in executions]
            self.leases.complete(leases, completions)
            for execution in executions:
                del pending[execution.job.id]
