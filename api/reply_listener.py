"""From the workers back to the API: one list in Redis for each API process, one reader, many waiting requests.

A list, not pub/sub: what is pushed while the reader reconnects is still there afterwards. What the reader popped
and lost with its connection is not: so after a reconnect, and before it gives up, a waiter looks for itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from clip_queue.api.critical_task import Owned
from clip_queue.shared.settings import Settings
from clip_queue.shared.wire import unpack_note

log = logging.getLogger(__name__)

BLOCK = 2.0  # seconds that a read waits on the server
BATCH = 256  # most notes read at once


class Waiter:
    """Wakes when something is pushed about its job. ``note`` is the answer's bytes, or empty: read the record."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.note = b""

    def tell(self, note: bytes) -> None:
        self.note = note or self.note
        self.news.set()


class Replies:
    def __init__(self, settings: Settings) -> None:
        self.address = f"cq:reply:{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._client = redis.asyncio.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=BLOCK + settings.redis_timeout,
            socket_connect_timeout=settings.redis_timeout,
            retry=Retry(NoBackoff(), 0),
        )
        self._waiters: dict[str, set[Waiter]] = {}
        self._task = Owned("replies")

    def start(self) -> None:
        self._task.start(self._read())

    @property
    def alive(self) -> bool:
        return self._task.alive

    @contextmanager
    def waiting(self, job_id: str) -> Iterator[Waiter]:
        """Hear of a job, as long as the context lasts. Enter it before the job can end."""
        waiter = Waiter()
        group = self._waiters.setdefault(job_id, set())
        group.add(waiter)
        try:
            yield waiter
        finally:
            group.discard(waiter)
            if not group:
                self._waiters.pop(job_id, None)

    async def close(self) -> None:
        await self._task.close()
        await self._client.aclose()

    async def _read(self) -> None:
        away = False
        while True:
            try:
                # Redis ≥ 7: blocks for the first, then takes what is there.
                popped = await self._client.blmpop(BLOCK, 1, self.address, direction="LEFT", count=BATCH)
            except (RedisError, OSError) as error:
                if not away:
                    log.warning("replies cannot be read: %s", type(error).__name__)
                away = True
                await asyncio.sleep(0.2)
                continue
            if away:
                away = False
                log.warning("replies are read again")
                for group in self._waiters.values():
                    for waiter in group:
                        waiter.tell(b"")
            notes: list[bytes] = popped[1] if popped else []  # type: ignore[assignment]
            for data in notes:
                job_id, note = unpack_note(data)
                for waiter in self._waiters.get(job_id, ()):
                    waiter.tell(note)
