"""Tars: read once, forwards, with little of them in memory; a broken tar tells where it breaks."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, Self, cast

from clip_queue.sources.unpacking import BrokenStream

BUFFER = 2**18  # bytes that are read at once after the end mark
HEADER_BYTES = 2**20  # the longest extended header, which holds a name
FAR = 2**50  # bytes; no tar is longer
GAP = 2**16  # bytes; a shorter gap is read, a longer one is jumped over


class BrokenTar(Exception):
    """A tar ends too early, or its next header makes no sense. ``what`` is wrong, and ``at`` which byte."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.what, self.at = what, at


class Tar:
    """An open tar. ``file`` is at its start; ``size`` is the file's size in bytes, -1 where unknown."""

    def __init__(self, file: Any, size: int) -> None:
        self.size = size
        self._file = file
        self._bytes = _Forwards(file, size)

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Every member, in order. :meth:`take` reads its data, before the next member is asked for.

        Raises:
            BrokenTar: the rest of the tar cannot be read.
            OSError: the file cannot be read. The tar need not be broken.
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
        except Exception as error:  # tarfile's own, and any that wild headers cause in its arithmetic and recursion
            if at >= self.size >= 0:
                raise BrokenTar("it ends too early", self.size) from error
            raise BrokenTar(str(error) or type(error).__name__, at) from error

    def take(self, member: tarfile.TarInfo) -> bytes:
        """The data of the member that was just given. Raises :class:`BrokenTar` if they are cut off."""
        try:
            data = self._bytes.take(member.size)
        except BrokenStream as error:
            raise BrokenTar(str(error), self._bytes.tell()) from error
        if len(data) < member.size:
            raise BrokenTar("it ends too early", self._bytes.tell())
        return data

    def at(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from byte ``offset`` on. Raises :class:`BrokenTar` or :class:`OSError`."""
        try:
            self._file.seek(offset)
            data: bytes = self._file.read(size)
        except BrokenStream as error:
            raise BrokenTar(str(error), offset) from error
        return data


class _Forwards:
    """A file for :mod:`tarfile` that never goes back: wild headers could make it read the same bytes for ever."""

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
        data: bytes = self._file.read(size)
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
