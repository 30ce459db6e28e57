"""Files that hold files: a tar, a compressed tar, or a zip. What one is, its first bytes tell, whatever its name."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, Protocol

from clip_queue.sources.formats.tars import Tar
from clip_queue.sources.formats.zips import MAGIC, Zip
from clip_queue.sources.unpacking import MAGIC_BYTES, Unpacked, codec_of


class Archive(Protocol):
    """An open archive. ``size`` of its contents in bytes, -1 where unknown."""

    size: int

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Every member, in the same order each time. Raises BrokenTar or OSError."""
        ...

    def take(self, member: tarfile.TarInfo) -> bytes:
        """The data of the member just given. Raises BrokenTar, OSError, or BadInput if that one alone is broken."""
        ...

    def at(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes of the member with this ``offset_data``; raises as :meth:`take`."""
        ...


def archive_of(file: Any, size: int) -> Archive:
    """The archive that an open file is; it is at its start, and ``size`` is its size in bytes, -1 where unknown.

    Raises:
        BrokenTar: a zip's directory cannot be read.
        OSError: the file cannot be read.
    """
    head = file.read(MAGIC_BYTES)
    file.seek(0)
    if head.startswith(MAGIC):
        return Zip(file, size)
    codec = codec_of(head)
    return Tar(Unpacked(file, codec), -1) if codec else Tar(file, size)
