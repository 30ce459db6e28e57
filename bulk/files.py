"""Files where they are: this machine's, or whatever fsspec opens. Nothing here waits without a limit of bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec

from shared.errors import BadInput

LOCAL = "file"
REMOTE_TIMEOUT = 60  # seconds that an HTTP store may take to answer


@lru_cache(maxsize=64)
def filesystem(protocol: str) -> Any:
    """fsspec's file system of a protocol (``file``, ``s3``, ``gs``, ``hf``, ``memory``, …), its credentials from the
    environment. Raises :class:`BadInput` where its package is missing."""
    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        raise BadInput(f"{protocol}:// cannot be opened here: {error}") from error


def split(url: str) -> tuple[str, str]:
    """Protocol and path of a URL; a path without ``://`` is this machine's, whatever is in its name."""
    protocol, separator, rest = url.partition("://")
    if not separator or not protocol.isidentifier():
        return LOCAL, str(Path(url).expanduser().absolute())
    if protocol == LOCAL:
        return LOCAL, rest
    path: str = filesystem(protocol)._strip_protocol(url)
    return protocol, path


def absolute(url: str) -> str:
    """A URL as any process may use it."""
    return join(*split(url)) if "://" not in url else url


def join(protocol: str, path: str) -> str:
    """The URL that :func:`split` takes apart."""
    return path if protocol == LOCAL else f"{protocol}://{path.lstrip('/')}"


def read_bytes(protocol: str, path: bytes, limit: int) -> bytes:
    """A whole file, at most ``limit`` + 1 bytes of it, so that too large shows.

    Raises:
        OSError: it cannot be read; a device, a pipe or a folder is none.
    """
    if protocol != LOCAL:
        with filesystem(protocol).open(os.fsdecode(path), "rb", block_size=2**18) as remote:
            data: bytes = remote.read(limit + 1)
            return data
    # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        return file.read(min(found.st_size, limit) + 1)


def reader(protocol: str, path: bytes, limit: int) -> Callable[[], bytes]:
    """:func:`read_bytes` for later."""
    return lambda: read_bytes(protocol, path, limit)


def shown(path: bytes) -> str:
    """A path as text: what is not UTF-8 in it is escaped."""
    return path.decode("utf-8", "backslashreplace")
