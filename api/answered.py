"""What becomes of a synchronous request's job once its result is here: it is removed from the store, with others.

Its record would stay for ``sync_ttl`` otherwise, of use to nobody. That time remains for what is not removed: jobs that
failed, requests whose caller or whose API process went away, and a store that could not be reached.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from clip_queue.api.critical_task import CriticalTask
from clip_queue.shared import submissions
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.store import AsyncStore

log = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds between two removals
BATCH = 256  # most jobs in one script
MOST = 16384  # jobs that wait to be removed; beyond them the oldest stay in the store until they expire


class AnsweredJobs:
    """Removes jobs from the store some time after :meth:`add`."""

    def __init__(self, store: AsyncStore, *, interval: float = INTERVAL) -> None:
        self._store = store
        self._interval = interval
        self._ids: deque[str] = deque(maxlen=MOST)
        self._task = CriticalTask("answered jobs")

    def start(self) -> None:
        self._task.start(self._run())

    @property
    def alive(self) -> bool:
        return self._task.alive

    def add(self, job_id: str) -> None:
        """A job that has succeeded, and whose result this process has."""
        self._ids.append(job_id)

    async def close(self) -> None:
        """Remove what waits, as far as the store is there."""
        await self._task.close()
        await self._remove()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._remove()

    async def _remove(self) -> None:
        while self._ids:
            some = [self._ids.popleft() for _ in range(min(BATCH, len(self._ids)))]
            try:
                await self._store.execute(submissions.forget(some))
            except Unavailable:
                self._ids.clear()
                log.debug("answered jobs stay in the store until they expire")
