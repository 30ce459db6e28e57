"""The clients of remote stores. Every call of a client in :mod:`clip_queue.sources` is made here.

What a client raises is an :class:`OSError` by the time it leaves this module
(:func:`clip_queue.sources.store_errors.as_os_error`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import fsspec

from clip_queue.shared.errors import BadInput
from clip_queue.sources.looking import go_on
from clip_queue.sources.store_errors import as_os_error, client_code, os_error

FILE, FOLDER = "file", "directory"  # as fsspec calls them
SMALL_BLOCK = 2**18  # bytes that are asked of a store at once for a file that is read whole
BLOCK = 2**22  # the same for a container


@lru_cache(maxsize=64)
def filesystem(protocol: str) -> Any:
    """fsspec's file system of a protocol (``file``, ``s3``, ``gs``, ``hf``, ``memory``, …).

    Its credentials come from the environment. Its methods raise errors of any class: call them in a block of
    :func:`as_os_error`.

    Raises:
        BadInput: the package that opens this protocol is missing.
        OSError: its client cannot be made.
    """
    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        raise BadInput(f"{protocol}:// cannot be opened here: {error}") from error
    except OSError:
        raise
    except Exception as error:
        raise os_error(error) from error


def is_s3(store: Any) -> bool:
    return hasattr(store, "call_s3")


def forget_listings(protocol: str) -> None:
    """Drop the listings that a store's client keeps: they hide what others write."""
    with as_os_error():
        filesystem(protocol).invalidate_cache()


def kind(protocol: str, path: str) -> str | None:
    """:data:`FILE`, :data:`FOLDER` or another kind of fsspec's; None: nothing in the store has this path.

    Raises:
        OSError: the store does not tell.
    """
    try:
        with as_os_error():
            found: str = filesystem(protocol).info(path)["type"]
    except FileNotFoundError:
        return None
    return found


def size(protocol: str, path: str) -> int:
    """Bytes of a store's file, -1 where the store does not tell. Raises :class:`OSError`."""
    with as_os_error():
        return _size_of(filesystem(protocol).info(path))


def matches(protocol: str, pattern: str) -> Iterator[tuple[str, str, int]]:
    """Path, kind and size (-1: unknown) of all that a glob matches in a store. Raises :class:`OSError`."""
    with as_os_error():
        found = filesystem(protocol).glob(pattern, detail=True)
    for path, about in found.items():
        yield path, about["type"], _size_of(about)


def entries(protocol: str, folder: str, *, flat: bool = False) -> Iterator[tuple[bytes, str, int]]:
    """What a store's folder holds, in no certain order: path, :data:`FILE` or :data:`FOLDER`, and size (-1: unknown).

    Of S3, one page is in memory at a time; of other stores, the client's listing of this one folder. Neither stays in
    the client's cache, because it would hide what others write.

    Args:
        flat: list all files below the folder, and no folders, if the store can do that in one listing (S3).

    Raises:
        OSError: the folder cannot be listed.
    """
    store = filesystem(protocol)
    go_on()
    if not is_s3(store):
        with as_os_error():
            store.invalidate_cache(folder)
            found = store.ls(folder, detail=True)
            store.invalidate_cache(folder)
        for about in found:
            go_on()
            path = about["name"].rstrip("/")
            if path.rpartition("/")[0] == folder.rstrip("/"):  # a web page may link anywhere
                yield os.fsencode(path), about["type"], _size_of(about)
        return
    bucket, key, _ = store.split_path(folder)
    asked = {"Bucket": bucket, "Prefix": key and f"{key.rstrip('/')}/", "Delimiter": "" if flat else "/"}
    while True:
        go_on()
        with as_os_error():
            page = store.call_s3("list_objects_v2", **asked)
        for about in page.get("CommonPrefixes", []):
            yield os.fsencode(f"{bucket}/{about['Prefix'][:-1]}"), FOLDER, 0
        for about in page.get("Contents", []):
            if not about["Key"].endswith("/"):  # an object that represents a folder
                yield os.fsencode(f"{bucket}/{about['Key']}"), FILE, int(about["Size"])
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _size_of(about: dict[str, Any]) -> int:
    found = about.get("size")
    return -1 if found is None else int(found)


class StoreFile(io.RawIOBase):
    """A file that a store's client has opened for reading. Its methods raise only :class:`OSError`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes; all that is left if that is negative."""
        try:  # and not as_os_error: this runs several times for each member of a tar
            data: bytes = self._file.read(size)
        except Exception as error:
            raised = os_error(error)
            if raised is error:
                raise
            raise raised from error
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with as_os_error():
            at: int = self._file.seek(offset, whence)
        return at

    def tell(self) -> int:
        with as_os_error():
            at: int = self._file.tell()
        return at

    def close(self) -> None:
        if not self.closed:
            super().close()
            with as_os_error():
                self._file.close()


def open_file(protocol: str, path: str, block_size: int = BLOCK, cache: str = "readahead") -> StoreFile:
    """A store's file, opened for reading; ``block_size`` bytes are asked of the store at once. With the ``cache``
    ``none``, what is read is asked for, and no more.

    Raises:
        OSError: it cannot be opened.
    """
    store = filesystem(protocol)
    with as_os_error():
        return StoreFile(store.open(path, "rb", block_size=block_size, cache_type=cache))


def read_file(protocol: str, path: str, limit: int) -> bytes:
    """At most ``limit`` bytes of a store's file; of S3 in one request, where opening it first asks for its size.

    An error that is an OSError already is left as it is: the row that it becomes says no more than the store did.

    Raises:
        OSError: it cannot be read.
    """
    store = filesystem(protocol)
    data: bytes
    try:
        if is_s3(store):
            data = store.cat_file(path, start=0, end=limit)
        else:
            with store.open(path, "rb", block_size=SMALL_BLOCK) as file:
                data = file.read(limit)
    except OSError as error:
        if client_code(error) != "InvalidRange":
            raise
        data = b""  # an empty file of S3 has no first byte
    except Exception as error:
        raise os_error(error) from error
    return data
