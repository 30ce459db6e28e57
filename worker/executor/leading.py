"""The threads in which a worker leads runs (:mod:`clip_queue.shared.runs`). They look for one, and lead it to its end.

A run may take days, so it has a thread of its own and none of those that messages need. What is costly of it is done in
a process beside (:mod:`clip_queue.bulk.run.led_handler`): such a thread waits for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from clip_queue.shared.errors import Unavailable
from clip_queue.worker.inference.fatal import die

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two looks for a run that waits


class Leading:
    """``number`` threads that lead runs.

    Args:
        lead: leads the run that is next, to its end; False if none waits.
        draining: set when the worker is about to end: then no run is begun.
        fatal: called with the error when a thread ends by it; it must end the process.
    """

    def __init__(
        self,
        lead: Callable[[], bool],
        number: int,
        draining: threading.Event,
        *,
        interval: float = INTERVAL,
        fatal: Callable[[BaseException], None] = die,
    ) -> None:
        self._lead, self._draining, self._interval, self._fatal = lead, draining, interval, fatal
        self._threads = [threading.Thread(target=self._run, name=f"lead-{i}", daemon=True) for i in range(number)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the threads' end, ``timeout`` seconds for each; they end when the worker drains."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)

    def _run(self) -> None:
        try:
            while not self._draining.is_set():
                try:
                    found = self._lead()
                except Unavailable as error:
                    log.warning("no run can be looked for: %s", error.message)
                    found = False
                if not found:
                    self._draining.wait(self._interval)
        except BaseException as error:
            log.critical("a thread that leads runs died", exc_info=True)
            self._fatal(error)
