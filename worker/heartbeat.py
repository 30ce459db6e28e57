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
from clip_queue.shared.reconciler import Patience, Round, resend_level, take_turn
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.shared.workers import WorkerInfo
from clip_queue.worker.executor.executor import Engine, die

log = logging.getLogger(__name__)


class Heartbeat:
    """Beats every second or every quarter of a lease, whichever is shorter."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._app = celery_app(settings, publisher=True)
        self._settings = settings
        self._store = Store.connect(settings)
        self._patience = Patience(settings)
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
            self._store.run(ops.goodbye(self._engine.id))
        except Unavailable:
            log.warning("the store is away: what this worker held comes free when its lease runs out")
        self._store.close()

    def drain(self) -> None:
        """From now on there are ``drain_timeout`` seconds to finish what is held."""
        self._drain_until = time.monotonic() + self._settings.drain_timeout
        self._engine.draining.set()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._watch()
                try:
                    self._beat()
                except Unavailable as error:
                    self._patience.lost_sight()
                    log.warning("no heartbeat: %s", error.message)
                self._stopping.wait(min(1.0, self._settings.lease / 4))
        except BaseException as error:
            log.critical("the heartbeat's thread died", exc_info=True)
            die(error)

    def _watch(self) -> None:
        """A forward pass that hangs, or a batcher that is gone, ends the process: its supervisor starts another."""
        took = self._engine.batcher.busy_for()
        if took > self._settings.forward_timeout:
            die(TimeoutError(f"a forward pass has taken {took:.0f} s (limit {self._settings.forward_timeout:.0f})"))
        if not self._engine.batcher.alive():
            die(RuntimeError("the batcher's thread is gone"))
        if self._drain_until and time.monotonic() > self._drain_until:
            self._engine.held.abandon()

    def _beat(self) -> None:
        held = self._engine.held
        beat = ops.beat(self._engine.id, self._info().pack(), self._settings.lease, held.progress())
        held.lose(self._store.run(beat))
        self._release()
        if self._patience.over and self._store.run(take_turn(self._engine.id)):
            self._reconcile()

    def _release(self) -> None:
        if orphans := self._engine.held.orphans():
            self._store.run(ops.release(orphans, self._engine.id))
            self._engine.held.adopt(orphans)

    def _reconcile(self) -> None:
        turn = Round(self._engine.clips, self._settings)
        while (op := turn.op) is not None:
            turn.turn(self._store.run(op))
        for model, lane, ids in turn.resend:
            log.log(resend_level(lane), "sending %d job(s) of %s again", len(ids), queue_name(model, lane))
            try:
                self._app.send_task(TASK, (model, lane, ids), queue=queue_name(model, lane), retry=False)
            except Exception as error:  # whatever the broker's client raises; the next round sends them again
                log.warning("could not send again: %s", type(error).__name__)

    def _info(self) -> WorkerInfo:
        batcher = self._engine.batcher
        items, busy = batcher.items, batcher.busy
        new, spent = items - self._seen[0], busy - self._seen[1]
        if new and spent > 0.01:
            rate = new / spent
            self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
            self._seen = (items, busy)
        return WorkerInfo(
            id=self._engine.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(self._engine.device),
            started=self._engine.started,
            models=[clip.info for clip in self._engine.clips.values()],
            rate=self._rate,
            items=items,
            batches=batcher.batches,
            busy=batcher.busy + batcher.busy_for(),
            work=sorted(self._engine.work),
        )
