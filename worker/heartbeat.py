"""The heartbeat of a worker: it renews the lease, reports progress, checks the threads and reconciles. One thread."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable

from clip_queue.shared import ops
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.messages import publish, queue_name
from clip_queue.shared.reconciler import RUNS, GracePeriod, ReconcilePass, acquire_turn, resend_level
from clip_queue.shared.runs import led, reconcile_runs
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.shared.workers import MANIFESTS, WorkerInfo, bury
from clip_queue.worker.executor.executor import JobExecutor
from clip_queue.worker.inference.fatal import die
from clip_queue.worker.memory import FreedMemory

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two heartbeats; less where a quarter of the lease is less
SMOOTHING = 0.8  # share of the old value in the new value of the measured rate
END = 20.0  # seconds that the threads have to end after ``drain_timeout``
LEAST_BUSY = 0.01  # seconds in forward passes that a measurement of the rate needs


class Heartbeat:
    """The heartbeat of one worker process. It closes its store in :meth:`stop`.

    Args:
        store: None: a connection of its own, so that it never waits for another thread.
        interval: seconds between two heartbeats; None: :data:`INTERVAL`, or a quarter of the lease if that is less.
        now: the monotonic clock, seconds.
        fatal: called with the reason when the process must end; it should not return.
    """

    def __init__(
        self,
        executor: JobExecutor,
        settings: Settings,
        *,
        store: Store | None = None,
        interval: float | None = None,
        now: Callable[[], float] = time.monotonic,
        fatal: Callable[[BaseException], None] = die,
    ) -> None:
        self._executor = executor
        self._batcher = executor.engine.batcher
        self._settings = settings
        self._store = store or Store.connect(settings)
        self._interval = min(INTERVAL, settings.lease / 4) if interval is None else interval
        self._now = now
        self._fatal = fatal
        self._grace = GracePeriod(settings)
        self._freed = FreedMemory()
        self._stopping = threading.Event()
        self._started = time.time()
        self._drain_until = math.inf
        self._rate = 0.0  # items a second in forward passes
        self._measured = (0, 0.0)  # items and busy seconds at the last measurement of the rate
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread after a first heartbeat: what a worker claims before it has a lease is taken for lost.

        Raises what that heartbeat raises, except :class:`Unavailable`.
        """
        self.step()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, release the jobs that are given back, and end the worker's lease."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            self._release()
            self._store.execute(ops.deregister(self._executor.id))
        except Unavailable:
            log.warning("the store is away: this worker's jobs are queued again when its lease runs out")
        self._store.close()

    def drain(self) -> None:
        """From now on the worker has ``drain_timeout`` seconds to complete its jobs. Then they are given back."""
        self._drain_until = self._now() + self._settings.drain_timeout
        self._executor.draining.set()

    def step(self) -> None:
        """One heartbeat. While the store cannot be reached there is a line in the log, and the worker goes on."""
        self._check_threads()
        self._continue_draining()
        self._freed.give_back()
        try:
            self._beat()
        except Unavailable as error:
            self._grace.restart()
            log.warning("no heartbeat: %s", error.message)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self._interval):
                self.step()
        except BaseException as error:
            log.critical("the heartbeat's thread died", exc_info=True)
            self._fatal(error)

    def _check_threads(self) -> None:
        """End the process if a forward pass hangs or the batcher's thread has ended; the supervisor starts another."""
        limit = self._settings.forward_timeout
        if seconds := self._batcher.overdue(limit):
            self._fatal(TimeoutError(f"a forward pass has taken {seconds:.0f} s (limit {limit:.0f})"))
        if not (self._batcher.alive() or self._batcher.stopping):
            self._fatal(RuntimeError("the batcher's thread is gone"))

    def _continue_draining(self) -> None:
        if self._executor.draining.is_set():
            self._executor.abandon_handlers()
        late = self._now() - self._drain_until
        if late > 0:
            self._executor.leases.give_back_all()
        if late > END:  # Celery would wait for its threads for ever
            self._fatal(TimeoutError(f"it was told to stop, and a thread has not ended {END:g} s after drain_timeout"))

    def _beat(self) -> None:
        leases = self._executor.leases
        held = leases.held()
        beat = ops.beat(self._executor.id, self._info().pack(), self._settings.lease, leases.progress(held))
        lost = self._store.execute(beat)
        leases.revoke(lost, held)
        self._release()
        if self._grace.over and self._store.execute(acquire_turn(self._executor.id)):
            self._store.execute(bury())
            self._reconcile(self._executor.engine.models)
        if self._grace.over and self._store.execute(acquire_turn(self._executor.id, RUNS)):
            self._store.execute(reconcile_runs(self._settings.max_attempts, 2 * self._settings.lease))
            self._reconcile(map(led, self._executor.engine.models))

    def _release(self) -> None:
        if job_ids := self._executor.leases.to_release():
            self._store.execute(ops.release(job_ids, self._executor.id))
            self._executor.leases.released(job_ids)

    def _reconcile(self, models: Iterable[str]) -> None:
        reconciling = ReconcilePass(models, self._settings)
        while (op := reconciling.op) is not None:
            reconciling.advance(self._store.execute(op))
        for model, lane, ids in reconciling.resend:
            log.log(resend_level(lane), "sending %d job(s) of %s again", len(ids), queue_name(model, lane))
            self._store.execute(publish(model, lane, ids))

    def _info(self) -> WorkerInfo:
        self._measure_rate()
        return WorkerInfo(
            id=self._executor.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(self._executor.engine.device),
            started=self._started,
            models=[model.info for model in self._executor.engine.models.values()],
            rate=self._rate,
            items=self._batcher.items,
            batches=self._batcher.batches,
            busy=self._batcher.busy_seconds(),
            work=sorted(self._executor.handlers),
            stages=self._executor.stages.to_wire(),
            cache_hits=self._executor.engine.text_cache.hits,
            cache_misses=self._executor.engine.text_cache.misses,
            manifests=MANIFESTS,
            gpu=self._executor.engine.gpu.usage(),
            logit_scales={
                name: model.logit_scale
                for name, model in self._executor.engine.models.items()
                if model.logit_scale is not None
            },
        )

    def _measure_rate(self) -> None:
        items, busy = self._batcher.items, self._batcher.busy
        new_items, seconds = items - self._measured[0], busy - self._measured[1]
        if new_items and seconds > LEAST_BUSY:
            rate = new_items / seconds
            self._rate = SMOOTHING * self._rate + (1 - SMOOTHING) * rate if self._rate else rate
            self._measured = (items, busy)
