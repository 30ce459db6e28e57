"""How many connections an API process has, what each may cost, and which one goes where there are too many."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from prometheus_client import Counter
from starlette.types import Receive, Scope, Send

from clip_queue.shared.settings import get_settings

log = logging.getLogger(__name__)

SPARE = 64  # connections over the limit whose request is still read: health is answered, anything else is 503
LINGER = 30.0  # seconds in which a body is still passed over after the answer was sent
FRAMING = 2**20  # bytes of framing that any chunked body may have; beyond it no more than content
# Registered by the application: a request that is turned away here never reaches it.
TURNED_AWAY = Counter(
    "clip_queue_connections_refused", "Requests that got 503 for too many connections.", registry=None
)
_QUIET = 10.0  # seconds between two lines in the log

_last_line = -_QUIET


@dataclass(frozen=True)
class Limits:
    """What a connection may cost. Times are seconds."""

    header_bytes: int = 64 * 1024
    headers: int = 200
    header_time: float = 10.0
    client_time: float = 20.0  # without progress
    rate: float = 1024.0  # bytes a second at least, on average, of an answer that is being taken
    body_bytes: int = 64 * 2**20
    connections: int = 900
    ahead: int = 32  # requests that a client may send before the first is answered
    linger: float = LINGER

    @classmethod
    def of_settings(cls) -> Limits:
        settings = get_settings()
        return cls(
            header_bytes=settings.max_header_bytes,
            header_time=settings.header_timeout,
            client_time=settings.client_timeout,
            rate=settings.min_client_rate,
            body_bytes=settings.max_body_bytes,
            connections=settings.max_connections,
        )

    @property
    def interval(self) -> float:
        """How often the times of a connection are looked at."""
        return min(self.header_time, self.client_time, self.linger) / 4

    def framing(self, content: int) -> int:
        """The most bytes that a body of ``content`` bytes may come in."""
        return 2 * content + FRAMING


class Connection(Protocol):
    served: bool
    transport: Any

    @property
    def idle(self) -> bool: ...

    @property
    def since(self) -> float: ...


def evict(connections: Iterable[Any], newest: Connection) -> None:
    """Close the connection that has been idle for longest, first among those that never sent a whole request.

    So the half-open connections of one client push out each other, and not those that are being answered.
    """
    idle: list[Connection] = [c for c in connections if c is not newest and c.idle and not c.transport.is_closing()]
    if idle:
        min(idle, key=lambda c: (c.served, c.since)).transport.abort()


def crowded(limit: int) -> None:
    """Count a request that is turned away, and leave a line in the log, not for each."""
    global _last_line
    TURNED_AWAY.inc()
    now = time.monotonic()
    if now - _last_line > _QUIET:
        _last_line = now
        log.warning("more than %d connections (setting max_connections): requests get 503", limit)


async def busy(_: Scope, __: Receive, send: Send) -> None:
    """The ASGI application that answers where there are too many connections."""
    body = orjson.dumps({"message": "This process has too many connections (setting max_connections); try again."})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"1"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
