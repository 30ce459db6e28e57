"""Files on this machine, or in any store that fsspec opens: their names, and reading them.

What the client of a store raises is an :class:`OSError` by the time it leaves this module, so the code above catches
OSError, and an error of another class is a bug of this project. No function here reads without a limit of bytes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_queue.shared.errors import BadInput
from clip_queue.sources.source import SourceAway
from clip_queue.sources.store_client import (
    FILE,
    FOLDER,
    entries,
    filesystem,
    forget_listings,
    is_s3,
    kind,
    matches,
    open_file,
    read_file,
    size,
)
from clip_queue.sources.store_errors import StoreAway, as_os_error, is_away, is_barred, reason

__all__ = [
    "FILE",
    "FOLDER",
    "LOCAL",
    "StoreAway",
    "absolute",
    "as_os_error",
    "check_name",
    "display",
    "entries",
    "filesystem",
    "forget_listings",
    "is_away",
    "is_barred",
    "is_s3",
    "join",
    "kind",
    "matches",
    "opened",
    "read_bytes",
    "reader",
    "reason",
    "size",
    "spellings",
    "split",
]

LOCAL = "file"  # the protocol of this machine's files
BUFFER = 2**18  # bytes that are read of a local file at once


def split(url: str) -> tuple[str, str]:
    """Protocol and path of a URL. A path without ``://`` is this machine's, whatever characters its name has.

    Raises:
        BadInput: the package that opens this protocol is missing.
        OSError: the protocol's client does not understand the URL.
    """
    protocol, separator, rest = url.partition("://")
    if not separator or not protocol.isidentifier():
        return LOCAL, str(Path(url).expanduser().absolute())
    if protocol == LOCAL:
        return LOCAL, rest
    store = filesystem(protocol)
    with as_os_error():
        path: str = store._strip_protocol(url)
    return protocol, path


def check_name(what: str, url: str) -> None:
    """Raise :class:`BadInput` unless a path or URL can be kept as text, and says something: an empty one would be the
    folder where the command runs."""
    if not url.strip():
        raise BadInput(f"the name of the {what} is empty: name a file, a folder or a URL")
    try:
        url.encode()
    except UnicodeEncodeError:
        shown = display(os.fsencode(url))
        raise BadInput(
            f"the name of the {what} is not UTF-8: {shown}. Rename it, or give it a link of another name"
        ) from None


def join(protocol: str, path: str) -> str:
    """The URL that :func:`split` takes apart."""
    return path if protocol == LOCAL else f"{protocol}://{path.lstrip('/')}"


def absolute(url: str) -> str:
    """The URL in a form that any process can use: a path becomes absolute."""
    return join(*split(url)) if "://" not in url else url


def display(path: bytes) -> str:
    """A path as text: bytes that are not UTF-8 are escaped."""
    return path.decode("utf-8", "backslashreplace")


def spellings(text: str) -> list[bytes]:
    """The paths that :func:`display` shows as ``text``: the text itself, and with its escapes as bytes."""
    name = text.encode()
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), name)
    return [name] if raw == name else [name, raw]


@contextmanager
def opened(protocol: str, path: bytes) -> Iterator[tuple[Any, int]]:
    """A file that is open for reading, and its size in bytes, -1 where unknown.

    Raises:
        OSError: it cannot be opened, or it is a device, a pipe or a folder.
    """
    if protocol == LOCAL:
        with os.fdopen(_descriptor(path), "rb", buffering=BUFFER) as file:
            yield file, _regular_size(file.fileno())
        return
    known = size(protocol, os.fsdecode(path))
    with open_file(protocol, os.fsdecode(path)) as remote:
        yield remote, known


def read_bytes(protocol: str, path: bytes, limit: int) -> bytes:
    """A whole file, but at most ``limit`` + 1 bytes of it: the caller sees by the length that it is too large.

    Raises:
        SourceAway: the store is away, so no other file of it could be read either.
        OSError: the file cannot be read, or it is a device, a pipe or a folder.
    """
    if protocol != LOCAL:
        try:
            return read_file(protocol, os.fsdecode(path), limit + 1)
        except OSError as error:
            if is_away(error):
                raise SourceAway(f"{display(path)} cannot be read: {reason(error)}") from error
            raise
    with os.fdopen(_descriptor(path), "rb", buffering=0) as file:
        return file.read(min(_regular_size(file.fileno()), limit) + 1)


def reader(protocol: str, path: bytes, limit: int) -> Callable[[], bytes]:
    """A function that calls :func:`read_bytes`."""
    return lambda: read_bytes(protocol, path, limit)


def _descriptor(path: bytes) -> int:
    # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _regular_size(descriptor: int) -> int:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a regular file")
    return found.st_size
