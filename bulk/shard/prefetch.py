"""The prefetcher: an iterator that runs in its own thread, a bounded number of items ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from clip_queue.bulk.shard.readers import STOP_TIMEOUT, left_behind

T = TypeVar("T")

POLL_INTERVAL = 0.25  # seconds between checks whether to stop


class ReadTimeout(Exception):
    """No item came in time."""


class Prefetcher(Generic[T]):
    """Iterates over ``items`` in a thread, at most ``size`` ahead. A context manager: leaving it ends the thread."""

    def __init__(self, items: Iterator[T], size: int, name: str) -> None:
        self._items = items
        self._queue: queue.Queue[T | _End] = queue.Queue(size)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Prefetcher[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(STOP_TIMEOUT)
        left_behind.add([self._thread])

    def next(self, timeout: float, check: Callable[[], None]) -> T | None:
        """The next item; None after the last. ``check`` is called while waiting and may raise.

        Raises:
            ReadTimeout: none came within ``timeout`` seconds.
            Exception: what the iterator raised.
        """
        waited = 0.0
        while True:
            check()
            try:
                item = self._queue.get(timeout=POLL_INTERVAL)
            except queue.Empty:
                waited += POLL_INTERVAL
                if waited >= timeout:
                    raise ReadTimeout from None
                continue
            if not isinstance(item, _End):
                return item
            if item.error is not None:
                raise item.error
            return None

    def _run(self) -> None:
        end = _End(None)
        try:
            for item in self._items:
                self._put(item)
                if self._stopping.is_set():
                    return
        except BaseException as error:
            end = _End(error)
        self._put(end)

    def _put(self, item: T | _End) -> None:
        while not self._stopping.is_set():
            try:
                self._queue.put(item, timeout=POLL_INTERVAL)
                return
            except queue.Full:
                continue


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error
