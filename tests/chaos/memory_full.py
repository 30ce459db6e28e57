"""The store's memory is full for some seconds."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable

import redis

SECONDS = (2.0, 6.0)  # that it is full
JUNK = 256 * 1024  # bytes of a key
ROOM = 4 * 2**20  # bytes that are free until junk fills them


class MemoryFull:
    """``client`` connects to the store of the moment. What is not deleted at once is junk of this class alone."""

    def __init__(self, client: Callable[[], redis.Redis], rng: random.Random) -> None:
        self._client, self._rng = client, rng

    def limit(self) -> None:
        """The limit comes down to what is in use; then it is lifted."""
        self._full_for(self._rng.uniform(*SECONDS), room=0)

    def fill(self) -> None:
        """Another client of the store fills it with junk; then it deletes that, and the limit is lifted."""
        self._full_for(self._rng.uniform(*SECONDS), room=ROOM)

    def lift(self) -> None:
        """As if nothing had been. A store that was restarted has no limit."""
        with self._client() as client:
            client.config_set("maxmemory", 0)
            for key in client.scan_iter("junk:*"):
                client.delete(key)

    def _full_for(self, seconds: float, room: int) -> None:
        until = time.monotonic() + seconds
        with contextlib.suppress(redis.RedisError), self._client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + room)
            for number in range(2 * room // JUNK):
                try:
                    client.set(f"junk:{number}", bytes(JUNK), px=60_000)
                except redis.ResponseError:  # full
                    break
            time.sleep(max(0.0, until - time.monotonic()))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                return self.lift()
            except redis.RedisError:
                time.sleep(0.2)
        raise AssertionError("the store's limit could not be lifted")
