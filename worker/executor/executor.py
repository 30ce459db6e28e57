"""The job executor of a worker process: it receives messages, and claims, embeds and completes their jobs.

::

    message ─► claim ─► execution ─► items ─► engine ─► completion ─► reply list
                 │   └► job handler (a kind that another package has added), in the message's thread
                 └► jobs that have lost a worker: the thread of suspects claims them, a few at a time

Runs that this worker leads come in no message: threads of their own look for them.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Mapping

from clip_queue.shared import ops, runs, tracing
from clip_queue.shared.errors import ClipError, Unavailable, Unreadable
from clip_queue.shared.job import Inputs, Kind
from clip_queue.shared.lane import Lane
from clip_queue.shared.ops import Suspicion
from clip_queue.shared.settings import Settings
from clip_queue.shared.stages import StageTimes
from clip_queue.shared.store import Store
from clip_queue.worker.executor.doorbell import Doorbell, Ring
from clip_queue.worker.executor.execution import JobExecution
from clip_queue.worker.executor.handlers import (
    HandlerFactory,
    JobHandler,
    failure,
    load_handlers,
    unknown_form,
    unknown_word,
    unsupported,
)
from clip_queue.worker.executor.leading import Leading
from clip_queue.worker.executor.leases import Claims, Lease, Leases
from clip_queue.worker.executor.suspects import Suspects
from clip_queue.worker.inference.engine import InferenceEngine
from clip_queue.worker.inference.item import BatchItem

CONCURRENCY = 2  # most messages of a lane (not interactive) at once: one feeds while the other completes or writes
BACKGROUND_ITEMS = 256  # most items that a message of the background lane claims at a time
BACKGROUND_JOBS = 64  # most jobs that it claims at a time
COMPLETIONS = 64  # most jobs that are completed in one round trip
SUSPECTS = 16  # most jobs that have lost a worker, and have more than one attempt left, at once
CONTENDED = 0.02  # seconds until the next look at suspects that another worker was quicker to claim
LOCK_WAIT = 1.0  # seconds that a wait for other suspects takes until it looks whether the worker drains
TOGETHER = 32  # most texts of a message that are gathered before their forward pass begins, or are completed
FEED_INTERVAL = 0.02  # seconds that feeding waits for a free place before it completes jobs that are over

EMBEDDING = frozenset({Kind.EMBED_IMAGE, Kind.EMBED_TEXT, Kind.COMPARE})

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
        ring: sends a message for another worker; None: nobody is told.
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
        ring: Ring | None = None,
        handlers: Mapping[str, HandlerFactory] | None = None,
    ) -> None:
        self.id = worker_id
        self.engine = engine
        self.handlers = load_handlers() if handlers is None else handlers
        self.draining = threading.Event()
        self.leases = Leases(store, worker_id, settings.max_attempts, self.draining)
        self.suspects = Suspects(self._run_suspects)
        self.stages = StageTimes()
        leads = settings.max_led_runs if Kind.EMBED_DATASET in self.handlers else 0
        self.leading = Leading(self._lead, leads, self.draining)
        self._store = store
        self._max_attempts = settings.max_attempts
        concurrency = concurrency or concurrency_of(settings.worker_threads)
        self._concurrency = {lane: threading.BoundedSemaphore(concurrency) for lane in Lane}
        self._suspect_runs = threading.Lock()
        places = [(model, lane) for lane in Lane for model in engine.models]
        places += [(runs.led(model), Lane.BULK) for model in engine.models]
        self._doorbells = {place: Doorbell(worker_id, *place, ring) for place in places if ring}

    def abandon_handlers(self) -> None:
        """Stop all job handlers. A worker that drains has no time for their jobs, so they are given back."""
        for task in self.leases.tasks():
            if not isinstance(task, JobExecution):
                task.abandon()

    def stop(self) -> None:
        """Give back all jobs that are left. Call it after the last message has returned."""
        self.suspects.stop()
        self.draining.set()
        self.leases.give_back_all()
        self.suspects.join(5)
        self.leading.join(5)
        self._store.close()

    def deliver(self, model: str, lane: Lane, job_ids: list[str]) -> None:
        """Process a message.

        An interactive message names its jobs, as does one of a lane that this release does not know. A background or
        bulk message only says that jobs of this model and lane wait in the store: it takes jobs from there until there
        are none. If ``concurrency`` other messages of the lane are being processed, it is passed on to another worker.
        So this work never occupies all threads. The shards of runs that workers lead wait under another name
        (:func:`clip_queue.shared.runs.led`), and a worker that cannot do them passes their messages on.
        """
        if lane is not Lane.BACKGROUND and lane is not Lane.BULK:
            self._execute(model, lane, job_ids)
            return
        able = not runs.is_led(model) or Kind.EMBED_SHARD in self.handlers
        concurrency = self._concurrency[lane]
        while able and not self.draining.is_set() and concurrency.acquire(blocking=False):
            try:
                while found := self._next(model, lane):
                    self._execute(found[0], lane, found[1])
            finally:
                concurrency.release()
            if not self._next(model, lane):  # a job may have come after the last look and before the release
                return
        if doorbell := self._doorbells.get((model, lane)):
            doorbell.ring_on(job_ids, lambda: self._work_waits(model, lane), self.draining)

    def _next(self, model: str, lane: Lane) -> tuple[str, list[str]] | None:
        """The jobs to process next, and the name that they wait under. Of the bulk lane, shards that wait under a
        model's own name and those of runs that workers lead have their turns by chance, so that none waits for ever."""
        names = [model]
        if lane is Lane.BULK and Kind.EMBED_SHARD in self.handlers:
            names = [runs.model_of(model), runs.led(runs.model_of(model))]
            random.shuffle(names)
        return next(((name, ids) for name in names if (ids := self._peek(name, lane))), None)

    def _lead(self) -> bool:
        """Lead the run that is next, to its end; False if none waits."""
        found = self._store.execute(runs.peek_run(self.engine.models))
        return found is not None and bool(self._handle([found], Suspicion.ALL).leases)

    def _work_waits(self, model: str, lane: Lane) -> bool:
        return bool(self._store.execute(ops.peek_queued(model, lane, 1, 1)).job_ids)

    def _peek(self, model: str, lane: Lane) -> list[str]:
        """The ids of queued jobs to process next; none while the worker drains."""
        if self.draining.is_set():
            return []
        jobs, items = (1, 1) if lane is Lane.BULK else (BACKGROUND_JOBS, BACKGROUND_ITEMS)
        peeked = self._store.execute(ops.peek_queued(model, lane, jobs, items))
        if peeked.suspects and lane is not Lane.BULK:
            self.suspects.notice(model, lane)
        elif peeked.suspects and not peeked.job_ids:
            return self._store.execute(ops.peek_suspects(model, lane, self._max_attempts, jobs, items))
        return peeked.job_ids

    def _execute(self, model: str, lane: Lane, job_ids: list[str]) -> None:
        """Process jobs until each is completed, given back, or held by another worker.

        Jobs that have lost a worker are left to the thread of suspects. Shards take long and would hold it up: they are
        processed here, and a last attempt waits until no suspect runs.
        """
        if lane is not Lane.BULK:
            if self._embed(job_ids, Suspicion.NONE).suspects:
                self.suspects.notice(model, lane)
            return
        for job_id in self._handle(job_ids, Suspicion.SOME).suspects:
            while not self.draining.is_set():
                if self._suspect_runs.acquire(timeout=LOCK_WAIT):
                    try:
                        self._handle([job_id], Suspicion.ALL)
                    finally:
                        self._suspect_runs.release()
                    break

    def _run_suspects(self, model: str, lane: Lane) -> bool:
        """Process a few of the jobs that have lost a worker, or one that has its last attempt left, beside no other.

        So a job is not failed only because it ran beside the one that ended the worker. Returns whether more may wait.
        """
        if self.draining.is_set():
            return False
        if not self._suspect_runs.acquire(timeout=LOCK_WAIT):
            return True
        try:
            op = ops.peek_suspects(model, lane, self._max_attempts, SUSPECTS, BACKGROUND_ITEMS)
            ids = self._store.execute(op)
            claims = self._embed(ids, Suspicion.SOME if len(ids) > 1 else Suspicion.ALL)
        finally:
            self._suspect_runs.release()
        if ids and not claims.leases:
            time.sleep(CONTENDED)
        return bool(ids)

    def _handle(self, job_ids: list[str], suspicion: Suspicion) -> Claims:
        """Claim jobs and let their handlers do them."""
        with self.leases.claim(job_ids, suspicion) as claims:
            for lease in claims.leases:
                if handler := self._handler(lease):
                    if self.draining.is_set():
                        handler.abandon()
                    if completion := handler.run():
                        self.leases.complete([lease], [completion])
        return claims

    def _handler(self, lease: Lease) -> JobHandler | None:
        """The handler of a job; None if the job has ended instead."""
        job = lease.job
        try:
            inputs, factory = self._inputs(lease), self.handlers.get(job.kind)
        except Unreadable as error:
            self.leases.complete([lease], [failure(job, error)])
            return None
        if factory is None or inputs is None:
            self.leases.complete([lease], [unsupported(job)])
            return None
        handler: JobHandler = factory(job, inputs, self.engine)
        return handler if self.leases.begin(lease, handler) else None

    def _embed(self, job_ids: list[str], suspicion: Suspicion) -> Claims:
        """Claim jobs, embed their items and complete them.

        Each job is completed when its own items are done. It does not wait for the other jobs.
        """
        pending: dict[str, Lease] = {}
        over = OverQueue()
        texts: list[BatchItem] = []

        def meanwhile() -> None:
            self.engine.begin(texts)
            self._complete(over, pending, wait=0)

        with self.leases.claim(job_ids, suspicion) as claims:
            try:
                fed = 0
                for lease in claims.leases:
                    # What is over is completed together: each time for itself costs more than a text that is known. But
                    # it waits neither for inputs that are asked for now nor for a job of many items.
                    if fed and (lease.inputs is None or fed + len(lease.inputs.items) > TOGETHER):
                        meanwhile()
                        fed = 0
                    if execution := self._begin(lease, over):
                        fed += len(execution.inputs.items)
                        pending[lease.job.id] = lease
                        lone = len(claims.leases) == len(execution.inputs.items) == 1
                        self._feed(execution, texts, meanwhile, lone)
                self.engine.begin(texts)
                while pending:
                    self._complete(over, pending, wait=1.0)
            finally:  # after an error some are left: they are given back
                self.engine.begin(texts)
                for lease in pending.values():
                    if lease.task:
                        lease.task.abandon()
        return claims

    def _begin(self, lease: Lease, over: OverQueue) -> JobExecution | None:
        """Begin a job. Returns its execution; None if the job has ended instead."""
        job, model = lease.job, self.engine.models.get(lease.job.model)
        try:
            inputs = self._inputs(lease)
            if job.kind not in EMBEDDING:
                raise ClipError(f"Jobs of kind {str(job.kind)!r} cannot be done in the lane {str(job.lane)!r}.")
            if model is None:
                raise ClipError("This worker does not serve the job's model.")  # the message is on a wrong queue
            if inputs is None:  # the store has evicted them, or a cancellation has removed them
                raise ClipError("The job's inputs are gone.")
            if not inputs.items:
                raise Unreadable("The job has no items.")
        except Unavailable:
            raise
        except ClipError as error:
            self.leases.complete([lease], [failure(job, error)])
            return None
        execution = JobExecution(job, inputs, model.fingerprint, over.put)
        return execution if self.leases.begin(lease, execution) else None

    def _inputs(self, lease: Lease) -> Inputs | None:
        """A job's inputs; None if they are gone. Raises :class:`Unreadable`."""
        if error := lease.error or unknown_word(lease.job):
            raise error
        return self.leases.inputs(lease)

    def _feed(self, execution: JobExecution, texts: list[BatchItem], meanwhile: Callable[[], None], lone: bool) -> None:
        """Pass an execution's items to the engine as places become free; ``meanwhile`` is called while none is free.

        Args:
            texts: those of the message that are ready: a forward pass of all costs little more than one of the first.
            lone: this thread has one item and nothing else to do.
        """
        lane, model = execution.job.lane, self.engine.models[execution.job.model]
        for index, item in enumerate(execution.inputs.items):
            wait = 0.0
            while not self.engine.acquire(lane, wait):
                meanwhile()
                wait = FEED_INTERVAL
                if execution.over:
                    return
            if execution.over:
                self.engine.release(lane)
                return
            if error := unknown_form(item):
                self.engine.release(lane)
                execution.fail(index, error)
            else:
                recipient, owner = execution.item(index), execution.job.owner
                cut = execution.inputs.cut
                self.engine.embed(model, lane, item, recipient, owner, cut=cut, lone=lone, gathered=texts)
                if len(texts) >= TOGETHER:
                    self.engine.begin(texts)

    def _complete(self, over: OverQueue, pending: dict[str, Lease], wait: float) -> None:
        """Complete the jobs that are over, in one round trip. Waits up to ``wait`` seconds for the first of them.

        A job whose deadline has passed is over too, also if an item of it hangs and never reports.
        """
        for lease in list(pending.values()):
            if isinstance(lease.task, JobExecution) and lease.task.late:
                lease.task.expire()
        executions: list[JobExecution] = []
        try:
            executions.append(over.get(timeout=wait) if wait else over.get_nowait())
            while len(executions) < COMPLETIONS:
                executions.append(over.get_nowait())
        except queue.Empty:
            pass
        if executions:
            completions = []
            for execution in executions:
                if not execution.abandoned:
                    completions.append(completion := execution.completion())
                    job = execution.job
                    self.stages.add(job.model, job.lane, job.kind, completion.result.timings)
            leases = [pending[execution.job.id] for execution in executions]
            self.leases.complete(leases, completions)
            for completion in completions:
                tracing.executed(pending[completion.job_id].job, completion.result, self.id)
            for execution in executions:
                del pending[execution.job.id]
