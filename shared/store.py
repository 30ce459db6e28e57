"""The job store: the source of truth for every job. Celery only carries references to what stands here.

An operation (:mod:`clip_queue.shared.ops`) is a list of commands and a way to read the replies; it knows nothing of
connections. :class:`Store` runs operations in a thread (workers), :class:`AsyncStore` in an event loop (the API).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from clip_queue.shared.errors import Cancelled, ClipError, Late, Unavailable, WorkerLost
from clip_queue.shared.job import TRANSITIONS, Lane
from clip_queue.shared.settings import Settings

T = TypeVar("T")
Command = tuple[Any, ...]

LUA = Path(__file__).parent / "lua"

# What a job ends with when the store itself ends it.
_ERRORS: dict[str, ClipError] = {
    "expired": Late("The job's deadline passed before it was done."),
    "cancelled": Cancelled("The job was cancelled."),
    "leader_lost": WorkerLost("The command that led this run is gone; the same command again goes on with it."),
    "worker_lost": WorkerLost("The job's worker was lost each time it was tried; it is not tried again."),
}


@dataclass(frozen=True)
class Op(Generic[T]):
    """Commands to send in one round trip, and what their replies mean."""

    commands: Sequence[Command]
    parse: Callable[[list[Any]], T]


@dataclass(frozen=True)
class Script:
    source: str
    sha: str


@cache
def script(name: str) -> Script:
    """A script of ``shared/lua`` behind the transition table, the error texts and the prelude."""
    table = {str(state): {str(n): 1 for n in after} for state, after in TRANSITIONS.items()}
    errors = {name: json.dumps(error.to_wire()) for name, error in _ERRORS.items()}
    source = "\n".join(
        (
            f"local NEXT = {_lua(table)}",
            f"local ERRORS = {_lua(errors)}",
            f"local LANES = {_lua(list(Lane))}",
            (LUA / "prelude.lua").read_text(),
            (LUA / f"{name}.lua").read_text(),
        )
    )
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def call(name: str, *args: Any) -> Command:
    """The command that runs a script."""
    return ("EVALSHA", script(name).sha, 0, *args)


def _lua(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"[{_lua(k)}]={_lua(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ",".join(map(_lua, value)) + "}"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _unloaded(replies: Sequence[Any]) -> list[int]:
    """Places of the commands that failed only because the server does not know their script yet."""
    return [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]


def _sources(commands: Sequence[Command]) -> list[str]:
    by_sha = {s.sha: s.source for s in map(script, sorted(p.stem for p in LUA.glob("*.lua") if p.stem != "prelude"))}
    return [by_sha[sha] for sha in dict.fromkeys(c[1] for c in commands)]


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def unavailable(error: Exception) -> Unavailable:
    """Redis's own words can hold its URL, hence its password: only the kind of failure is told."""
    return Unavailable(f"The job store cannot be reached ({type(error).__name__}); try again.", retry_after=1)


class Store:
    """Runs operations in the calling thread. Errors: :class:`Unavailable` when Redis cannot be reached in time."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    @classmethod
    def connect(cls, settings: Settings) -> Store:
        # No retries: what may run twice is decided where the operation is known.
        client = redis.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=settings.redis_timeout,
            socket_connect_timeout=settings.redis_timeout,
            retry=Retry(NoBackoff(), 0),
        )
        return cls(client)

    def run(self, op: Op[T]) -> T:
        try:
            replies = self._send(op.commands)
            if unloaded := _unloaded(replies):
                again = [op.commands[i] for i in unloaded]
                for source in _sources(again):
                    self.client.script_load(source)
                for place, reply in zip(unloaded, self._send(again), strict=True):
                    replies[place] = reply
            _raise_first(replies)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        return op.parse(replies)

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        pipe = self.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = pipe.execute(raise_on_error=False)
        return replies

    def close(self) -> None:
        self.client.close()


class AsyncStore:
    """Runs operations in an event loop. Errors as :class:`Store`."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client

    @classmethod
    def connect(cls, settings: Settings, *, max_connections: int = 64) -> AsyncStore:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.redis_url.get_secret_value(),
            max_connections=max_connections,
            timeout=settings.redis_timeout,
            socket_timeout=settings.redis_timeout,
            socket_connect_timeout=settings.redis_timeout,
            retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
        )
        return cls(redis.asyncio.Redis(connection_pool=pool))

    async def run(self, op: Op[T]) -> T:
        try:
            replies = await self._send(op.commands)
            if unloaded := _unloaded(replies):
                again = [op.commands[i] for i in unloaded]
                for source in _sources(again):
                    await self.client.script_load(source)
                for place, reply in zip(unloaded, await self._send(again), strict=True):
                    replies[place] = reply
            _raise_first(replies)
        except (RedisError, OSError) as error:
            # Idle connections to a server that went away would each fail once more when it is back.
            with suppress(RedisError, OSError):
                await self.client.connection_pool.disconnect(inuse_connections=False)
            raise unavailable(error) from error
        return op.parse(replies)

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        pipe = self.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies

    async def close(self) -> None:
        await self.client.aclose()
