"""The job executor of a worker process: it receives messages, and claims, embeds and completes their jobs.

::

    message ─► claim ─► execution ─► items ─► engine ─► completion ─► reply list
                     └► job handler (a kind that another package has added), in the message's thread
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping

from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import JobResult, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.worker.executor.execution import JobExecution
from clip_queue.worker.executor.handlers import HandlerFactory, JobHandler, load_handlers, unsupported
from clip_queue.worker.executor.leases import Lease, Leases
from clip_queue.worker.inference.engine import InferenceEngine

CONCURRENCY = 2  # most messages of a lane (not interactive) at once: one feeds while the other completes or writes
BACKGROUND_ITEMS = 256  # most items that a message of the background lane claims at a time
BACKGROUND_JOBS = 64  # most jobs that it claims at a time
COMPLETIONS = 64  # most jobs that are completed in one round trip
FEED_INTERVAL = 0.02  # seconds that feeding waits for a free place before it completes jobs that are over

OverQueue = queue.SimpleQueue[JobExecution]


def concurrency_of(threads: int) -> int:
    """Messages of the background lane, and as many of the bulk lane, that may hold a thread at once.

    Of three threads or more, one at least, and of eight half, are left to requests.
    """
    return max(1, min(CONCURRENCY, threads // 4))


class JobExecutor:
    """The executor of one process. Celery's threads call :meth:`deliver`.

    Args:
        concurrency: most messages of the background lane, and of the bulk lane, at once; None: by the threads.
        handlers: factories of job handlers by kind; None: those that are installed.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        store: Store,
        settings: Settings,
        worker_id: str,
        *,
        concurrency: int | None = None,
        handlers: Mapping[str, HandlerFactory] | None = None,
    ) -> None:
        self.id = worker_id
        self.engine = engine
        self.handlers = load_handlers() if handlers is None else handlers
        self.draining = threading.Event()
        self.leases = Leases(store, worker_id, settings.max_attempts, self.draining)
        self._store = store
        concurrency = concurrency or concurrency_of(settings.worker_threads)
        self._concurrency = {lane: threading.BoundedSemaphore(concurrency) for lane in Lane}
        self._last_attempt = threading.Lock()

    def abandon_handlers(self) -> None:
        """Stop all job handlers. A worker that drains has no time for their jobs, so they are given back."""
        for task in self.leases.tasks():
            if not isinstance(task, JobExecution):
                task.abandon()

    def stop(self) -> None:
        """Give back all jobs that are left. Call it after the last message has returned."""
        self.leases.give_back_all()
        self._store.close()

    def deliver(self, model: str, lane: Lane, job_ids: list[str]) -> None:
        """Process a message.

        An interactive message names its jobs. A background or bulk message only says that jobs of this model and lane
        wait in the store: it takes jobs from there until there are none. If ``concurrency`` other messages of the lane
        are being processed, it does nothing. So this work never occupies all threads.
        """
        if lane is Lane.INTERACTIVE:
            self._execute(job_ids, self._embed)
            return
        concurrency, process = self._concurrency[lane], self._handle if lane is Lane.BULK else self._embed
        while concurrency.acquire(blocking=False):
            try:
                while ids := self._peek(model, lane):
                    self._execute(ids, process)
            finally:
                concurrency.release()
            if not self._peek(model, lane):  # a job may have come after the last peek and before the release
                return

    def _peek(self, model: str, lane: Lane) -> list[str]:
        """The ids of queued jobs to process next; none while the worker drains."""
        if self.draining.is_set():
            return []
        jobs, items = (1, 1) if lane is Lane.BULK else (BACKGROUND_JOBS, BACKGROUND_ITEMS)
        return self._store.execute(ops.peek_queued(model, lane, jobs, items))

    def _execute(self, job_ids: list[str], process: Callable[..., list[str]]) -> None:
        """Process jobs until each is completed, given back, or held by another worker.

        A job that has lost all its earlier workers makes its last attempt beside no other such job. So a job is not
        failed only because it ran beside the one that ended the worker.
        """
        for job_id in process(job_ids):
            with self._last_attempt:
                if not self.draining.is_set():
                    process([job_id], alone=True)

    def _handle(self, job_ids: list[str], *, alone: bool = False) -> list[str]:
        """Claim jobs and let their handlers do them. Returns the ids of jobs whose last attempt must run alone."""
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
        """Claim jobs, embed their items and complete them. Returns the ids of jobs whose last attempt must run alone.

        Each job is completed when its own items are done. It does not wait for the other jobs.
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
            finally:  # after an error some are left: they are given back
                for lease in pending.values():
                    if lease.task:
                        lease.task.abandon()
        return claims.left_for_alone

    def _begin(self, lease: Lease, over: OverQueue) -> JobExecution | None:
        """Begin a job. Returns its execution; None if the job has ended instead."""
        job, model = lease.job, self.engine.models.get(lease.job.model)
        inputs = self.leases.inputs(lease)
        if model is None or inputs is None:
            # The message is on a wrong queue, or the store has evicted the inputs, or a cancellation has removed them.
            error = ClipError("The job's inputs are gone." if model else "This worker does not serve the job's model.")
            self.leases.complete([lease], [ops.Completion(job.id, State.FAILED, JobResult(error=error.to_wire()))])
            return None
        execution = JobExecution(job, inputs, model.fingerprint, over.put)
        return execution if self.leases.begin(lease, execution) else None

    def _feed(self, execution: JobExecution, meanwhile: Callable[[], None]) -> None:
        """Pass an execution's items to the engine as places become free; ``meanwhile`` is called while none is free."""
        lane, model = execution.job.lane, self.engine.models[execution.job.model]
        for index, item in enumerate(execution.inputs.items):
            while not self.engine.acquire(lane, FEED_INTERVAL):
                meanwhile()
            if execution.over:
                self.engine.release(lane)
                return
            self.engine.embed(model, lane, item, execution.item(index))

    def _complete(self, over: OverQueue, pending: dict[str, Lease], wait: float) -> None:
        """Complete the jobs that are over, in one round trip. Waits up to ``wait`` seconds for the first of them."""
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
