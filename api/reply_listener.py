"""From the workers back to the API: one list in Redis for each API process, read by one task for many waiting requests.

It is a list and not a pub/sub channel, so messages that are pushed while the connection is lost are still there
afterwards. Messages that were popped when the connection was lost are gone. So each waiting request reads its job from
the store after a reconnection, and once more before it gives up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis.asyncio
from redis.exceptions import RedisError

from clip_queue.api.critical_task import CriticalTask
from clip_queue.shared.redis_client import async_client
from clip_queue.shared.redis_errors import what_it_means
from clip_queue.shared.settings import Settings
from clip_queue.shared.wire import unpack_reply

log = logging.getLogger(__name__)

BLOCK = 2.0  # seconds that a read waits on the server
BATCH = 256  # most messages read at once
RETRY_AFTER = 0.2  # seconds between a failed read and the next


class PendingReply:
    """What one request waits for: a message about its job.

    ``message`` is the job's packed result. It is empty if the message has none: then the job is read from the store.
    """

    def __init__(self) -> None:
        self.message = b""
        self._came = False
        self._waiting: asyncio.Future[None] | None = None

    async def wait(self, timeout: float) -> bool:
        """Wait for a message, at most ``timeout`` seconds. False if none has come."""
        if not self._came:
            # A future and a timer: `wait_for` would make a task, `asyncio.timeout` or an event cost more than all this.
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(max(0.0, timeout), self._wake)
            try:
                await self._waiting
            finally:
                timer.cancel()
                self._waiting = None
        came, self._came = self._came, False
        return came

    def clear(self) -> None:
        """Forget what has come: what is read next knows of it."""
        self._came = False

    def receive(self, message: bytes) -> None:
        self.message = message or self.message
        self._came = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)


class ReplyListener:
    """Reads the list ``address`` of this process, and gives each message to the requests that expect it.

    Args:
        client: a connection of its own, because each read blocks it.
        block: seconds that a read waits on the server.
    """

    def __init__(self, client: redis.asyncio.Redis, *, block: float = BLOCK) -> None:
        # Records have it, and must not have 65 bytes (wire.pack_timings).
        self.address = f"cq:reply:{socket.gethostname()[-32:]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._client = client
        self._block = block
        self._pending: dict[str, set[PendingReply]] = {}
        self._task = CriticalTask("reply listener")

    @classmethod
    def connect(cls, settings: Settings) -> ReplyListener:
        return cls(async_client(settings, max_connections=1, timeout=BLOCK + settings.redis_timeout))

    def start(self) -> None:
        self._task.start(self._read())

    @property
    def alive(self) -> bool:
        return self._task.alive

    @contextmanager
    def expect(self, job_id: str) -> Iterator[PendingReply]:
        """Receive the messages about a job inside the context. Enter it before the job can end."""
        reply = PendingReply()
        group = self._pending.setdefault(job_id, set())
        group.add(reply)
        try:
            yield reply
        finally:
            group.discard(reply)
            if not group:
                self._pending.pop(job_id, None)

    async def close(self) -> None:
        await self._task.close()
        await self._client.aclose()

    async def _read(self) -> None:
        lost = False
        while True:
            try:
                # BLMPOP (Redis 7) blocks until there is a message, then takes all that are there.
                popped = await self._client.blmpop(self._block, 1, self.address, direction="LEFT", count=BATCH)
            except (RedisError, OSError) as error:
                if not lost:
                    log.warning("replies cannot be read: %s", what_it_means(error) or type(error).__name__)
                lost = True
                with suppress(RedisError, OSError):  # what is connected may be a replica since a failover
                    await self._client.connection_pool.disconnect()
                await asyncio.sleep(RETRY_AFTER)
                continue
            if lost:
                lost = False
                log.warning("replies are read again")
                for group in self._pending.values():
                    for reply in group:
                        reply.receive(b"")
            messages: list[bytes] = popped[1] if popped else []  # type: ignore[assignment]
            for data in messages:
                job_id, message = unpack_reply(data)
                for reply in self._pending.get(job_id, ()):
                    reply.receive(message)
