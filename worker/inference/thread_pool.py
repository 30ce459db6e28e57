"""A thread pool with priorities: the tasks of a lane run before those of the next lane."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable

from clip_queue.shared.lane import Lane
from clip_queue.worker.inference.priority import give_way

log = logging.getLogger(__name__)

_RANK = {lane: rank for rank, lane in enumerate(Lane)}
_LAST = len(Lane)  # the rank of the task that ends a thread: behind every lane


class PriorityThreadPool:
    """Threads for decoding. Pillow releases the GIL, so they scale with the cores.

    The pool does not bound the tasks that wait; its user does. ``fatal`` is called with the error if a task raises,
    because that is a bug. The thread then ends.

    Args:
        nice: by how much the threads, and processes that they start, give way to others (:func:`give_way`).
    """

    def __init__(
        self, threads: int, fatal: Callable[[BaseException], None], name: str = "decode", *, nice: int = 0
    ) -> None:
        self._nice = nice
        self._tasks: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._fatal = fatal
        self._callers = threading.BoundedSemaphore(max(1, threads))
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True) for i in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, lane: Lane, task: Callable[[], None]) -> None:
        self._tasks.put((_RANK[lane], next(self._order), task))

    def run(self, lane: Lane, task: Callable[[], None]) -> None:
        """Run a task in the caller's thread, at once: of one small image, to wake another thread would take longer.

        No more callers do so at once than there are threads. A task beyond them is submitted: tasks that never end
        must not hold up each thread that brings one.
        """
        if not self._callers.acquire(blocking=False):
            self.submit(lane, task)
            return
        try:
            self._perform(task)
        finally:
            self._callers.release()

    def stop(self, timeout: float) -> list[threading.Thread]:
        """End the threads after all submitted tasks. Waits ``timeout`` seconds; returns those that have not ended."""
        until = time.monotonic() + timeout
        for _ in self._threads:
            self._tasks.put((_LAST, next(self._order), _end))
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return [thread for thread in self._threads if thread.is_alive()]

    def _run(self) -> None:
        give_way(self._nice)
        while True:
            _, _, task = self._tasks.get()
            if task is _end or not self._perform(task):
                return

    def _perform(self, task: Callable[[], None]) -> bool:
        """Run a task; False if it raised."""
        try:
            task()
        except BaseException as error:
            log.critical("thread %s died", threading.current_thread().name, exc_info=True)
            self._fatal(error)
            return False
        return True


def _end() -> None:
    """The task that ends a thread."""
