"""Turns of the threads of one process at a shard.

A shard that was lost and has come back to the same worker begins when the thread that had it before has stopped, so
that never two write the same files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

POLL_INTERVAL = 0.25  # seconds between checks whether to stop waiting


class Turns:
    """Who is at work on what; for many threads."""

    def __init__(self) -> None:
        self._taken: set[Hashable] = set()
        self._change = threading.Condition()

    @contextmanager
    def take(self, what: Hashable, check: Callable[[], None]) -> Iterator[None]:
        """Have ``what`` for this thread alone. ``check`` is called while another has it, and may raise."""
        with self._change:
            while what in self._taken:
                check()
                self._change.wait(POLL_INTERVAL)
            self._taken.add(what)
        try:
            yield
        finally:
            with self._change:
                self._taken.remove(what)
                self._change.notify_all()


turns = Turns()  # of the process
