"""The job store: it has the true state of every job. Celery's messages only refer to its jobs.

An operation (:mod:`clip_queue.shared.ops`) is a list of commands and a function that reads their replies. It knows
nothing of connections. :class:`Store` executes operations in a thread, :class:`AsyncStore` in an event loop.
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
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError

from clip_queue.shared.errors import Cancelled, ClipError, Late, MemoryFull, Unavailable, WorkerLost
from clip_queue.shared.job import TRANSITIONS
from clip_queue.shared.lane import Lane
from clip_queue.shared.redis_client import async_client, client
from clip_queue.shared.redis_errors import what_it_means
from clip_queue.shared.settings import Settings

T = TypeVar("T")
Command = tuple[Any, ...]

LUA = Path(__file__).parent / "lua"
PARTS = ("prelude", "held", "message", "recount", "transitions", "together")  # what scripts share

# What a worker is told of a job's record: what is missing is of jobs that have ended, or that are runs.
CLAIMED = (
    *("id", "kind", "model", "lane", "state", "total", "rows", "owner", "reply", "on_error", "worker", "refused"),
    *("created", "started", "deadline", "ttl", "attempts", "progress", "trace", "size", "watched"),
)

# The errors of jobs that the store itself ends.
_ERRORS: dict[str, ClipError] = {
    "expired": Late("The job's deadline passed before it was done."),
    "cancelled": Cancelled("The job was cancelled."),
    "unwritable": MemoryFull("The job is done, but Redis refused to write its result: its memory is full."),
    "leader_lost": WorkerLost("The command that led this run is gone; the same command again goes on with it."),
    "leader_lost_too_often": WorkerLost(
        "The worker that led this run was lost each time, before a shard was done; the same submission again goes on."
    ),
    "worker_lost": WorkerLost("The job's worker was lost each time it was tried; it is not tried again."),
}


@dataclass(frozen=True)
class Op(Generic[T]):
    """Commands that are sent in one round trip, and how to read their replies."""

    commands: Sequence[Command]
    parse: Callable[[list[Any]], T]


@dataclass(frozen=True)
class Script:
    source: str
    sha: str


@cache
def script(name: str) -> Script:
    """A script of ``shared/lua``, after the prelude, the parts that it needs, and those of the tables that they use.

    A second line ``--+`` names the parts. The first line, which must stay the first, has the flags. With
    ``allow-oom`` the script also runs when the server has reached its ``maxmemory``: ending work must always be
    possible, and only accepting work must not.
    """
    tables = {
        "NEXT": {str(state): {str(n): 1 for n in after} for state, after in TRANSITIONS.items()},
        "ERRORS": {name: json.dumps(error.to_wire()) for name, error in _ERRORS.items()},
        "LANES": list(Lane),
        "CLAIMED": list(CLAIMED),
    }
    flags, text = (LUA / f"{name}.lua").read_text().split("\n", 1)
    parts = text.partition("\n")[0].split()[1:] if text.startswith("--+") else []
    body = "\n".join([*((LUA / f"{part}.lua").read_text() for part in ["prelude", *parts]), text])
    made = (f"local {name} = {_lua(value)}" for name, value in tables.items() if name in body)
    source = "\n".join([flags, *made, body])
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def call(name: str, *args: Any) -> Command:
    """The command that runs a script."""
    return ("EVALSHA", script(name).sha, 0, *args)


def replicated(op: Op[T], replicas: int, timeout: float) -> Op[T]:
    """The operation, done once so many replicas have what it wrote: then a failover keeps it.

    Its ``parse`` raises :class:`Unavailable` if they have not said so within ``timeout`` seconds.
    """
    if replicas == 0:
        return op

    def parse(replies: list[Any]) -> T:
        if replies[-1] < replicas:
            raise Unavailable(f"Only {replies[-1]} of {replicas} replicas have the job; try again.", retry_after=1)
        return op.parse(replies[:-1])

    return Op([*op.commands, ("WAIT", replicas, int(timeout * 1000))], parse)


def _lua(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"[{_lua(k)}]={_lua(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ",".join(map(_lua, value)) + "}"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _unloaded(commands: Sequence[Command], replies: Sequence[Any]) -> list[int]:
    """The places of commands that failed because the server does not know their script, and of plain ones beside them.

    A plain command reads what the scripts have left, or waits for it: so it is done again, after them. A job's state
    would be newer than its result otherwise.
    """
    failed = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    return sorted(failed + [i for i, command in enumerate(commands) if failed and command[0] != "EVALSHA"])


def _sources(commands: Sequence[Command]) -> list[str]:
    names = sorted(p.stem for p in LUA.glob("*.lua") if p.stem not in PARTS)
    by_sha = {s.sha: s.source for s in map(script, names)}
    return [by_sha[sha] for sha in dict.fromkeys(c[1] for c in commands if c[0] == "EVALSHA")]


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def unavailable(error: Exception, memory: dict[str, Any] | None = None) -> Unavailable:
    """The error for the caller. It quotes only the type of ``error``: Redis's message can contain its URL and password.

    Args:
        memory: the server's ``INFO memory``, if ``error`` is that its memory is full.
    """
    if isinstance(error, OutOfMemoryError):
        limit = f" of {memory['maxmemory']} bytes" if memory and "maxmemory" in memory else ""
        return MemoryFull(
            f"The store is full: Redis has reached its maxmemory{limit}. Jobs that are accepted go on; "
            "try again when results have expired.",
            retry_after=5,
        )
    if meaning := what_it_means(error):
        return Unavailable(meaning, retry_after=1)
    return Unavailable(f"The job store cannot be reached ({type(error).__name__}); try again.", retry_after=1)


class Store:
    """Executes operations in the calling thread. Raises :class:`Unavailable` if Redis cannot be reached in time."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    @classmethod
    def connect(cls, settings: Settings) -> Store:
        return cls(client(settings))

    def execute(self, op: Op[T]) -> T:
        try:
            replies = self._send(op.commands)
            if unloaded := _unloaded(op.commands, replies):
                missing = [op.commands[i] for i in unloaded]
                for source in _sources(missing):
                    self.client.script_load(source)
                for place, reply in zip(unloaded, self._send(missing), strict=True):
                    replies[place] = reply
            _raise_first(replies)
        except OutOfMemoryError as error:
            raise unavailable(error, self._memory()) from error
        except (RedisError, OSError) as error:
            # An idle connection may lead to a server that is gone, or that is a replica since a failover.
            with suppress(RedisError, OSError):
                self.client.connection_pool.disconnect(inuse_connections=False)
            raise unavailable(error) from error
        return op.parse(replies)

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        pipe = self.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = pipe.execute(raise_on_error=False)
        return replies

    def _memory(self) -> dict[str, Any] | None:
        with suppress(RedisError, OSError):
            memory: dict[str, Any] = self.client.info("memory")
            return memory
        return None

    def close(self) -> None:
        self.client.close()


class AsyncStore:
    """Executes operations in an event loop. Raises :class:`Unavailable` as :class:`Store` does."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client

    @classmethod
    def connect(cls, settings: Settings, *, max_connections: int = 64) -> AsyncStore:
        return cls(async_client(settings, max_connections=max_connections))

    async def execute(self, op: Op[T]) -> T:
        try:
            replies = await self._send(op.commands)
            if unloaded := _unloaded(op.commands, replies):
                missing = [op.commands[i] for i in unloaded]
                for source in _sources(missing):
                    await self.client.script_load(source)
                for place, reply in zip(unloaded, await self._send(missing), strict=True):
                    replies[place] = reply
            _raise_first(replies)
        except OutOfMemoryError as error:
            raise unavailable(error, await self._memory()) from error
        except (RedisError, OSError) as error:
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

    async def _memory(self) -> dict[str, Any] | None:
        with suppress(RedisError, OSError):
            memory: dict[str, Any] = await self.client.info("memory")
            return memory
        return None

    async def close(self) -> None:
        await self.client.aclose()
