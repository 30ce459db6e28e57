"""The threads that read a shard's images, and the count of those that a file system keeps.

A thread that waits for the kernel cannot be ended. It is left behind, and ends when its read returns. So that a source
which hangs does not take more threads with each shard, no shard begins while too many are left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from clip_queue.shared.lane import Lane
from clip_queue.sources.source import SourceError
from clip_queue.worker.inference.fatal import die
from clip_queue.worker.inference.thread_pool import PriorityThreadPool

STOP_TIMEOUT = 1.0  # seconds that the end of a shard waits for its threads
MOST_LEFT = 32  # threads of earlier shards beyond which no shard begins


class LeftBehind:
    """The threads of earlier shards that hang in a read; for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def add(self, threads: Iterable[threading.Thread]) -> None:
        with self._lock:
            self._threads.update(thread for thread in threads if thread.is_alive())

    def count(self) -> int:
        with self._lock:
            self._threads = {thread for thread in self._threads if thread.is_alive()}
            return len(self._threads)

    def check(self) -> None:
        """Raise :class:`SourceError` if so many hang that no shard may begin."""
        if (hanging := self.count()) > MOST_LEFT:
            raise SourceError(
                f"{hanging} reads of earlier shards still hang in this worker: nothing more is read until they return"
            )


left_behind = LeftBehind()  # of the process: what hangs outlives the shard


class Readers:
    """The reading threads of one shard, started at the first image that needs them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._pool: PriorityThreadPool | None = None
        self._stopped = False

    def submit(self, task: Callable[[], None]) -> None:
        """Run a task in one of the threads; after :meth:`stop`, never."""
        with self._lock:
            if self._stopped:  # the source was late, and gives rows to a shard that is over
                return
            if self._pool is None:
                self._pool = PriorityThreadPool(self._threads, fatal=die, name="read")
                self._pool.start()
            self._pool.submit(Lane.BULK, task)

    def stop(self) -> None:
        """End the threads; those that hang are left behind."""
        with self._lock:
            self._stopped = True
        if self._pool:
            left_behind.add(self._pool.stop(STOP_TIMEOUT))
