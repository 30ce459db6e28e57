"""The thread that runs the jobs which have lost a worker, apart from the fresh ones.

Such a job may be the one that ends its workers. So a few of them run at a time, and one that has a last attempt left
runs beside no other of them: at most a handful of innocent jobs is lost with the one to blame, and none fails for it.
Fresh jobs do not wait for them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from clip_queue.shared.errors import Unavailable
from clip_queue.shared.lane import Lane
from clip_queue.worker.inference.fatal import die

log = logging.getLogger(__name__)

LONGEST_WAIT = 5.0  # seconds between looks for something to do, should a notification be missed

_RANK = {lane: rank for rank, lane in enumerate(Lane)}


class Suspects:
    """Where suspects wait in the store, and the thread that runs them; it is started when it is first needed.

    Args:
        run: runs some suspects of a model's lane. Returns whether more may wait.
        fatal: called with the error when the thread ends by it; it must end the process.
    """

    def __init__(self, run: Callable[[str, Lane], bool], fatal: Callable[[BaseException], None] = die) -> None:
        self._run_some = run
        self._fatal = fatal
        self._noticed: dict[tuple[str, Lane], None] = {}
        self._change = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def notice(self, model: str, lane: Lane) -> None:
        """There are suspects in this lane."""
        with self._change:
            self._noticed[model, lane] = None
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="suspects", daemon=True)
                self._thread.start()
            self._change.notify()

    def stop(self) -> None:
        """Begin no more of them."""
        with self._change:
            self._stopping = True
            self._change.notify()

    def join(self, timeout: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while place := self._next():
                try:
                    more = self._run_some(*place)
                except Unavailable as error:  # the reconciler sends them again
                    log.warning("jobs that have lost a worker wait for the store: %s", error.message)
                    more = False
                if more:
                    self.notice(*place)
        except BaseException as error:
            log.critical("the thread of suspects died", exc_info=True)
            self._fatal(error)

    def _next(self) -> tuple[str, Lane] | None:
        """A lane in which there are suspects; None when stopping."""
        with self._change:
            while not self._noticed and not self._stopping:
                self._change.wait(LONGEST_WAIT)
            if self._stopping:
                return None
            place = min(self._noticed, key=lambda place: _RANK.get(place[1], len(_RANK)))
            del self._noticed[place]
            return place
