"""Clients of the Redis that the setting ``redis_url`` names: the one place where a connection is configured.

They retry nothing: only the caller knows whether an operation may run twice. With Sentinel each new connection asks
for the master first, so after a failover the next attempt of whoever tries again meets the new one.
"""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from clip_queue.shared.redis_connections import (
    PackingConnection,
    PackingSentinelConnection,
    PackingSentinelSSLConnection,
    PackingSSLConnection,
    PackingUnixConnection,
)
from clip_queue.shared.redis_url import RedisUrl, parse_redis_url
from clip_queue.shared.settings import Settings


def client(settings: Settings) -> redis.Redis:
    """A client for threads; each operation ends within ``redis_timeout``. Raises BadRedisUrl if it is none."""
    url = parse_redis_url(settings.redis_url.get_secret_value())
    options = _options(url, settings, settings.redis_timeout) | {"retry": Retry(NoBackoff(), 0)}
    if url.master_name is None:
        return redis.Redis(**_place(url), **options)
    sentinel = Sentinel(url.hosts, sentinel_kwargs=sentinel_options(url, settings))
    master: redis.Redis = sentinel.master_for(url.master_name, **options)
    return master


def async_client(settings: Settings, *, max_connections: int, timeout: float | None = None) -> redis.asyncio.Redis:
    """A client for an event loop. Raises BadRedisUrl if it is none.

    Args:
        max_connections: who finds them all in use waits for one, at most ``redis_timeout``.
        timeout: longest wait for a reply, seconds; None: ``redis_timeout``.
    """
    url = parse_redis_url(settings.redis_url.get_secret_value())
    options = _options(url, settings, settings.redis_timeout if timeout is None else timeout)
    options |= {"retry": AsyncRetry(NoBackoff(), 0)}
    options |= {"max_connections": max_connections, "timeout": settings.redis_timeout}
    if url.master_name is not None:
        login = sentinel_options(url, settings) | {"retry": AsyncRetry(NoBackoff(), 0)}
        sentinel = AsyncSentinel(url.hosts, sentinel_kwargs=login)
        managed = PackingSentinelSSLConnection if options.pop("ssl", False) else PackingSentinelConnection
        pool: Any = _BoundedSentinelPool
        return redis.asyncio.Redis.from_pool(pool(url.master_name, sentinel, connection_class=managed, **options))
    kind: type[Any] = PackingConnection
    if url.path:
        kind = PackingUnixConnection
    elif options.pop("ssl", False):
        kind = PackingSSLConnection
    pool = redis.asyncio.BlockingConnectionPool(connection_class=kind, **_place(url, "path"), **options)
    return redis.asyncio.Redis.from_pool(pool)


class _BoundedSentinelPool(AsyncSentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """Connections to the master of the moment, so many and no more."""


def sentinel_options(url: RedisUrl, settings: Settings) -> dict[str, Any]:
    """How the Sentinels themselves are asked: without a limit, one that hangs would hang whoever asks it."""
    timeouts = {"socket_timeout": settings.redis_timeout, "socket_connect_timeout": settings.redis_timeout}
    tls = {"ssl": True, **url.tls} if url.tls else {}
    return {**timeouts, **tls, **url.sentinel_login, "retry": Retry(NoBackoff(), 0)}


def _options(url: RedisUrl, settings: Settings, timeout: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "db": url.db,
        "socket_timeout": timeout,
        "socket_connect_timeout": settings.redis_timeout,
        **url.login,
    }
    if url.path:
        del options["socket_connect_timeout"]
    return options | ({"ssl": True, **url.tls} if url.tls else {})


def _place(url: RedisUrl, path: str = "unix_socket_path") -> dict[str, Any]:
    if url.path:
        return {path: url.path}
    ((host, port),) = url.hosts
    return {"host": host, "port": port}
