"""Tasks of the event loop that the process cannot work without."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


def terminate() -> None:
    """End this process as its supervisor would, with SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


class CriticalTask:
    """One task with a name. If it ends before :meth:`close`, that is a bug: the process ends, and its supervisor starts
    another.

    Args:
        end_process: what is called then.
    """

    def __init__(self, name: str, *, end_process: Callable[[], None] = terminate) -> None:
        self._name = name
        self._end_process = end_process
        self._task: asyncio.Task[None] | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(work, name=self._name)
        self._task.add_done_callback(self._ended)

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    async def close(self) -> None:
        """Cancel the task and wait until it has ended, at most 5 s."""
        for _ in range(10):  # asyncio.wait_for of Python 3.11, which libraries use, can lose a cancellation
            if not self._task or self._task.done():
                return
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.5)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.critical("the task %r has ended; so does this process", self._name, exc_info=task.exception())
            self._end_process()
