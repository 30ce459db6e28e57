"""The worker's heartbeat: lease, progress, watchdog, and its turns as reconciler. One thread."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time

from clip_queue.shared import ops
from clip_queue.shared.broker import TASK, celery_app, queue_name
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.reconciler import GracePeriod, ReconcilePass, acquire_turn, resend_level
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.shared.workers import WorkerInfo
from clip_queue.worker.executor.executor import JobExecutor
from clip_queue.worker.inference.fatal import die

log = logging.getLogger(__name__)


class Heartbeat:
    """Beats every second or every quarter of a lease, whichever is shorter."""

    def __init__(self, executor: JobExecutor, settings: Settings) -> None:
        self._executor = executor
        self._batcher = executor.engine.batcher
        self._started = time.time()
        self._app = celery_app(settings, publisher=True)
        self._settings = settings
        self._store = Store.connect(settings)
        self._grace = GracePeriod(settings)
        self._stopping = threading.Event()
        self._drain_until = 0.0
        self._rate = 0.0
        self._seen = (0, 0.0)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give back what is left and let the lease go."""
        self._stopping.set()
        self._thread.join(timeout=5)
        try:
            self._release()
            self._store.execute(ops.deregister(self._executor.id))
        except Unavailable:
            log.warning("the store is away: what this worker held comes free when its lease runs out")
        self._store.close()

    def drain(self) -> None:
        """From now on there are ``drain_timeout`` seconds to finish what is held."""
        self._drain_until = time.monotonic() + self._settings.drain_timeout
        self._executor.draining.set()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._watch()
                try:
                    self._beat()
                except Unavailable as error:
                    self._grace.restart()
                    log.warning("no heartbeat: %s", error.message)
                self._stopping.wait(min(1.0, self._settings.lease / 4))
        except BaseException as error:
            log.critical("the heartbeat's thread died", exc_info=True)
            die(error)

    def _watch(self) -> None:
        """A forward pass that hangs, or a batcher that is gone, ends the process: its supervisor starts another."""
        took = self._batcher.busy_for()
        if took > self._settings.forward_timeout:
            die(TimeoutError(f"a forward pass has taken {took:.0f} s (limit {self._settings.forward_timeout:.0f})"))
        if not self._batcher.alive():
            die(RuntimeError("the batcher's thread is gone"))
        if self._executor.draining.is_set():
            self._executor.abandon_handlers()
        if self._drain_until and time.monotonic() > self._drain_until:
            self._executor.leases.give_back_all()

    def _beat(self) -> None:
        leases = self._executor.leases
        beat = ops.beat(self._executor.id, self._info().pack(), self._settings.lease, leases.progress())
        revoked = self._store.execute(beat)
        leases.revoke(revoked)
        self._release()
        if self._grace.over and self._store.execute(acquire_turn(self._executor.id)):
            self._reconcile()

    def _release(self) -> None:
        if job_ids := self._executor.leases.to_release():
            self._store.execute(ops.release(job_ids, self._executor.id))
            self._executor.leases.released(job_ids)

    def _reconcile(self) -> None:
        reconciling = ReconcilePass(self._executor.engine.models, self._settings)
        while (op := reconciling.op) is not None:
            reconciling.advance(self._store.execute(op))
        for model, lane, ids in reconciling.resend:
            log.log(resend_level(lane), "sending %d job(s) of %s again", len(ids), queue_name(model, lane))
            try:
                self._app.send_task(TASK, (model, lane, ids), queue=queue_name(model, lane), retry=False)
            except Exception as error:  # whatever the broker's client raises; the next round sends them again
                log.warning("could not send again: %s", type(error).__name__)

    def _info(self) -> WorkerInfo:
        items, busy = self._batcher.items, self._batcher.busy
        new, spent = items - self._seen[0], busy - self._seen[1]
        if new and spent > 0.01:
            rate = new / spent
            self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
            self._seen = (items, busy)
        return WorkerInfo(
            id=self._executor.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(self._executor.engine.device),
            started=self._started,
            models=[model.info for model in self._executor.engine.models.values()],
            rate=self._rate,
            items=items,
            busy=self._batcher.busy + self._batcher.busy_for(),
            work=sorted(self._executor.handlers),
        )
