"""Zips: their directory is read first, then a member at a time; a broken member is an error of its own."""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from clip_queue.shared.errors import BadInput
from clip_queue.sources.formats.tars import BrokenTar
from clip_queue.sources.unpacking import Watched

MAGIC = (b"PK\3\4", b"PK\5\6")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others are unpacked in memory without a limit

_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, NotImplementedError)


class Zip:
    """An open zip, as :class:`clip_queue.sources.formats.tars.Tar` is a tar. Its directory is held in memory."""

    def __init__(self, file: Any, size: int) -> None:
        """Raises :class:`BrokenTar` if the directory cannot be read, :class:`OSError` if the file cannot."""
        self.size = size
        self._file = Watched(file)
        try:
            self._zip = zipfile.ZipFile(self._file)
        except MemoryError:
            raise
        except Exception as error:  # wild directories raise all sorts of errors
            raise self._file.failure or BrokenTar(str(error) or type(error).__name__, 0) from error
        self._entries = sorted(self._zip.infolist(), key=_order)

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Every member, those of one sample together, sorted by name."""
        for number, entry in enumerate(self._entries):
            member = tarfile.TarInfo(entry.filename)
            member.size, member.offset_data = entry.file_size, number
            link = stat.S_ISLNK(entry.external_attr >> 16)
            member.type = tarfile.DIRTYPE if entry.is_dir() else tarfile.SYMTYPE if link else tarfile.REGTYPE
            yield member

    def take(self, member: tarfile.TarInfo) -> bytes:
        """A member's data. Raises :class:`BadInput` if they cannot be had, :class:`OSError` if the file is not read."""
        return self.at(member.offset_data, member.size)

    def at(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes of the member with this ``offset_data``; raises as :meth:`take`."""
        entry = self._entries[offset]
        if entry.flag_bits & 1:
            raise BadInput(f"{entry.filename} is encrypted")
        if entry.compress_type not in METHODS:
            raise BadInput(f"{entry.filename} is compressed in a way that is not read here ({entry.compress_type})")
        try:
            with self._zip.open(entry) as data:
                found = data.read(size)  # never all that comes: what the directory says of its size may be a lie
                if len(found) == size:
                    data.read(1)  # at the end the checksum is compared
        except _ERRORS as error:
            if self._file.failure is not None:
                raise self._file.failure from error
            raise BadInput(f"{entry.filename} cannot be unpacked ({str(error) or type(error).__name__})") from error
        if len(found) < min(size, entry.file_size):
            raise BadInput(f"{entry.filename} cannot be unpacked (it ends too early)")
        return found


def _order(entry: zipfile.ZipInfo) -> tuple[str, str, str]:
    folder, slash, base = entry.filename.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash, stem, suffix
