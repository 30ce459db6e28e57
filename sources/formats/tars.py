"""A tar read once, forwards, never much of it in memory, that says where it breaks."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import Any, Self, cast

from clip_queue.sources import storage as files
from clip_queue.sources.discovery import reason

BUFFER = 2**18
REMOTE_BLOCK = 2**22  # asked of a store at once
HEADER_BYTES = 2**20  # the longest extended header: a name, at most
FAR = 2**50  # no tar is longer
GAP = 2**16  # shorter ones are read over rather than jumped over


class BrokenTar(Exception):
    """A tar that ends or makes no sense where it should go on: what is wrong, and at which byte."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.what, self.at = what, at


class Tar:
    """An open tar; ``file`` is at its start, ``size`` is the file's, -1 where unknown."""

    def __init__(self, file: Any, size: int) -> None:
        self._size = size
        self._bytes = _Forwards(file, size)

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Every member; its data may be taken before the next is asked for.

        Raises:
            BrokenTar: there is no going on from here.
            OSError: the file cannot be read: not the tar's fault.
        """
        at = 0
        try:
            with tarfile.open(
                fileobj=cast(Any, self._bytes), mode="r:", tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
            ) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined] # it would remember every one
                    if member.size < 0:  # by an extended header
                        raise tarfile.ReadError("negative size")
                    yield member
                    at = archive.offset
            at = self._bytes.tell()
            while data := self._bytes.read(BUFFER):
                if data.strip(b"\0"):
                    raise tarfile.ReadError("data after its end mark")
        except (OSError, MemoryError):
            raise
        except Exception as error:  # tarfile's own, and what wild headers make of its arithmetic and recursion
            if at >= self._size >= 0:
                raise BrokenTar("it ends too early", self._size) from error
            raise BrokenTar(str(error) or type(error).__name__, at) from error

    def take(self, member: tarfile.TarInfo) -> bytes:
        """The data of the member that was just given. Raises :class:`BrokenTar` where it is cut off."""
        data = self._bytes.take(member.size)
        if len(data) < member.size:
            raise BrokenTar("it ends too early", self._bytes.tell())
        return data


class _Forwards:
    """A file for :mod:`tarfile` that never goes back: that is where wild headers would make it go round for ever."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._size = file, size
        self._at = 0

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.take(size)

    def take(self, size: int) -> bytes:
        try:  # and not as below: this runs several times a member
            data: bytes = self._file.read(size)
        except OSError:
            raise
        except Exception as error:
            raise OSError(reason(error)) from error
        self._at += len(data)
        if len(data) < size and self._at < self._size:
            raise OSError(f"reading stopped at byte {self._at} of {self._size}")
        return data

    def seek(self, to: int) -> int:
        gap = to - self._at
        if gap < 0 or to > (self._size if self._size >= 0 else FAR):
            raise tarfile.ReadError("a size that leads nowhere")
        if gap <= GAP:
            self.take(gap)
        else:
            with files.as_os_error():
                self._file.seek(to)
            self._at = to
        return self._at


class _Header(tarfile.TarInfo):
    """A header whose faults show: tarfile takes a bad one, except the first, for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError("negative size")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


@contextlib.contextmanager
def opened(protocol: str, path: bytes) -> Iterator[tuple[Any, int]]:
    """A file open for reading, and its size, -1 where unknown.

    Raises:
        OSError: it cannot be opened; a device, a pipe or a folder is none.
    """
    if protocol == files.LOCAL:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=BUFFER) as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError("not a regular file")
            yield file, found.st_size
        return
    store = files.filesystem(protocol)
    with files.as_os_error():
        size = store.info(os.fsdecode(path))["size"]
        remote = store.open(os.fsdecode(path), "rb", block_size=REMOTE_BLOCK)
    with remote:
        yield remote, -1 if size is None else size
