"""Files where they are: this machine's, or whatever fsspec opens. Nothing here waits without a limit of bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec

from clip_queue.shared.errors import BadInput
from clip_queue.sources.source import SourceAway

LOCAL = "file"
FILE, FOLDER = "file", "directory"  # as fsspec calls them

# How a store that is away shows: each client has errors of its own, known by their names; s3fs makes numbers of some.
_AWAY = re.compile("Connect|Timeout|Transport|Credential|Authentication|RefreshError|HTTPClient")
_AWAY_NUMBERS = {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EBUSY), errno.ECONNRESET, errno.EPIPE}
# S3's words for a login that is wrong or has run out, whatever was asked for. An answer without a body has only "400".
_LOGIN = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "400"}


class StoreAway(OSError):
    """A store does not answer, or not now, or nobody may ask it: not the fault of the file that was asked for."""


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
        SourceAway: its store is, as it would be for any other file.
        OSError: it cannot be read; a device, a pipe or a folder is none.
        Exception: what else a store's client raises.
    """
    if protocol != LOCAL:
        try:
            return _remote(filesystem(protocol), os.fsdecode(path), limit + 1)
        except Exception as error:
            if is_away(error):
                raise SourceAway(f"{shown(path)} cannot be read: {reason(error)}") from error
            raise
    # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        return file.read(min(found.st_size, limit) + 1)


def _remote(store: Any, path: str, limit: int) -> bytes:
    """At most ``limit`` bytes of a store's file; of S3 in one request, where opening it first asks for its size."""
    data: bytes
    if not is_s3(store):
        with store.open(path, "rb", block_size=2**18) as file:
            data = file.read(limit)
        return data
    try:
        data = store.cat_file(path, start=0, end=limit)
    except OSError as error:
        if _code(error) != "InvalidRange":
            raise
        data = b""  # an empty file has no first byte
    return data


def is_s3(store: Any) -> bool:
    return hasattr(store, "call_s3")


def reader(protocol: str, path: bytes, limit: int) -> Callable[[], bytes]:
    """:func:`read_bytes` for later."""
    return lambda: read_bytes(protocol, path, limit)


def entries(protocol: str, folder: str, *, flat: bool = False) -> Iterator[tuple[bytes, str, int]]:
    """What a store's folder holds, in no certain order: path, :data:`FILE` or :data:`FOLDER`, and size (-1: unknown).

    ``flat``: with all files below it and no folders, where the store can list so (S3). Of S3 one page is in memory at
    a time, of other stores the client's listing of this one folder. Neither stays in the client's cache: there it would
    hide what others write.
    """
    store = filesystem(protocol)
    if not is_s3(store):
        store.invalidate_cache(folder)
        found = store.ls(folder, detail=True)
        store.invalidate_cache(folder)
        for about in found:
            path, size = about["name"].rstrip("/"), about.get("size")
            if path.rpartition("/")[0] == folder.rstrip("/"):  # a web page may link anywhere
                yield os.fsencode(path), about["type"], -1 if size is None else int(size)
        return
    bucket, key, _ = store.split_path(folder)
    asked = {"Bucket": bucket, "Prefix": key and f"{key.rstrip('/')}/", "Delimiter": "" if flat else "/"}
    while True:
        page = store.call_s3("list_objects_v2", **asked)
        for about in page.get("CommonPrefixes", []):
            yield os.fsencode(f"{bucket}/{about['Prefix'][:-1]}"), FOLDER, 0
        for about in page.get("Contents", []):
            if not about["Key"].endswith("/"):  # an object that stands for a folder
                yield os.fsencode(f"{bucket}/{about['Key']}"), FILE, int(about["Size"])
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def reason(error: Exception) -> str:
    """An error in words, without an address that it may quote: its query can be a signature. Of a store's, also what to
    look after."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    words = text if isinstance(error, OSError) and "://" not in text else type(error).__name__
    if is_away(error):
        advice = ": check that the store can be reached, and the credentials for it"
    elif _is_refused(error):
        advice = ": check the credentials for the store"
    else:
        return words
    return words if words.endswith(advice) else words.removesuffix(".") + advice


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
    """Whatever a store's client raises as what a file raises: :class:`StoreAway` where the file is not to blame."""
    try:
        yield
    except Exception as error:
        if is_away(error):
            raise StoreAway(reason(error)) from error
        if _is_refused(error):
            raise PermissionError(reason(error)) from error
        if isinstance(error, OSError):
            raise
        raise OSError(reason(error)) from error


def is_away(error: Exception) -> bool:
    """Whether it says that a store is away (:class:`StoreAway`), in whatever way its client says it."""
    if isinstance(error, StoreAway) or (isinstance(error, OSError) and error.errno in _AWAY_NUMBERS):
        return True
    return _code(error) in _LOGIN or any(_AWAY.search(kind.__name__) for kind in type(error).__mro__)


def is_barred(error: Exception) -> bool:
    """Whether a container cannot be had because its store is away or lets nobody in: that is no row's fault. (A picture
    that may not be read is one row that fails; of a table that would be all of them.)"""
    return is_away(error) or _is_refused(error)


def _is_refused(error: Exception) -> bool:
    return isinstance(error, PermissionError) and error.errno is None  # a kernel's has a number


def _code(error: Exception) -> str:
    """S3's word for an error: s3fs makes an error of Python's of it, and keeps the client's as the cause."""
    response = getattr(error.__cause__ or error, "response", None)
    found: str = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return found


def shown(path: bytes) -> str:
    """A path as text: what is not UTF-8 in it is escaped."""
    return path.decode("utf-8", "backslashreplace")
