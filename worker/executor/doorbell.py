"""A message that says that there is work is a doorbell. A worker with no hand free rings at the next one's door."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from clip_queue.shared.lane import Lane

log = logging.getLogger(__name__)

INTERVAL = 0.1  # least seconds between two times that a worker rings on, for a lane of a model
LONGEST = 256  # most names in a message: a round that long has been everywhere

Ring = Callable[[str, Lane, list[str]], None]  # sends a message with these names in it


class Doorbell:
    """Rings on for one lane of a model.

    The message that is sent names the workers that have rung on, so it goes round once. It is sent only while there is
    work: in a service whose workers are all busy it costs a message a worker in each interval, in others none.
    """

    def __init__(self, worker_id: str, model: str, lane: Lane, ring: Ring) -> None:
        self._worker_id, self._model, self._lane, self._ring = worker_id, model, lane, ring
        self._ringing = threading.Lock()
        self._next = 0.0

    def ring_on(self, names: list[str], work_waits: Callable[[], bool], stopping: threading.Event) -> None:
        """Pass on a message that came with ``names``."""
        if self._worker_id in names or len(names) > LONGEST or not self._ringing.acquire(blocking=False):
            return  # the thread that holds the lock looks for work later than now, so it rings for this message too
        try:
            stopping.wait(self._next - time.monotonic())
            if work_waits():
                self._next = time.monotonic() + INTERVAL
                self._ring(self._model, self._lane, [*names, self._worker_id])
        except Exception as error:  # of the broker's client, of many kinds; the reconciler rings again
            log.warning("a message could not be passed on: %s", type(error).__name__)
        finally:
            self._ringing.release()
