"""Connections of an event loop whose commands are written in C, by hiredis.

redis-py does so for threads, and for an event loop only reads by it: a job's 29 arguments took 50 µs of Python, and
take 6.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import hiredis
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

LARGE = 64 * 1024  # bytes of an argument from which redis-py's own way is the quicker one: it does not copy it


class _Packing:
    """What the classes below add to redis-py's."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """A command as bytes of Redis's protocol, to the bit as redis-py writes it."""
        if not any(isinstance(arg, bytes) and len(arg) > LARGE for arg in args):
            with suppress(TypeError):  # an argument of another type: redis-py's own way takes it, or says what is wrong
                return [hiredis.pack_command((*args[0].split(), *args[1:]))]
        packed: list[bytes] = super().pack_command(*args)  # type: ignore[misc]
        return packed


class PackingConnection(_Packing, Connection):
    """Over TCP."""


class PackingSSLConnection(_Packing, SSLConnection):
    """Over TLS."""


class PackingUnixConnection(_Packing, UnixDomainSocketConnection):
    """Over a socket in the file system."""


class PackingSentinelConnection(_Packing, SentinelManagedConnection):
    """Over TCP, to the master that a Sentinel names."""


class PackingSentinelSSLConnection(_Packing, SentinelManagedSSLConnection):
    """The same over TLS."""
