"""Compressed files, unpacked while they are read, forwards, in bounded memory. Their first bytes tell how.

gzip, bzip2, zstd and lz4 are pyarrow's to unpack, xz is Python's.
"""

from __future__ import annotations

import lzma
import os
from typing import Any

import pyarrow as pa

MAGIC_BYTES = 10  # bytes that tell how a file is compressed
BLOCK = 2**18  # bytes that are unpacked at once to pass over them
XZ_BYTES = 2**27  # the largest dictionary of xz; xz -9 has half of it

# A file that grows by more than this is made to harm, not to be read. What is small all the same may grow as it likes.
RATIO = 200
FREE = 2**30  # bytes

_CODECS = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}


class BrokenStream(Exception):
    """Compressed data are broken, end too early, or grow beyond all measure. No OSError: no store is to blame."""


def codec_of(head: bytes) -> str | None:
    """How a file is compressed, by its first :data:`MAGIC_BYTES`; None: it is not."""
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return "bz2"
    return next((codec for magic, codec in _CODECS.items() if head.startswith(magic)), None)


class Watched:
    """A file that remembers what reading it raised: libraries do not tell that from what they raise themselves."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.failure: OSError | None = None
        self.count = 0  # bytes read
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._file.read(size)
        except OSError as error:
            self.failure = error
            raise
        self.count += len(data)
        return data

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        try:
            at: int = self._file.seek(to, whence)
        except OSError as error:
            if to >= 0 or whence != os.SEEK_END:  # else the file is shorter than a library expects
                self.failure = error
            raise
        return at

    def tell(self) -> int:
        at: int = self._file.tell()
        return at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """The file belongs to who opened it."""


class Unpacked:
    """The contents of a compressed file, as a file. To go back it begins anew."""

    def __init__(self, file: Any, codec: str, *, ratio: int = RATIO, free: int = FREE) -> None:
        """``file`` is at its start, and of any size. Contents over ``free`` bytes and ``ratio`` times it are broken."""
        self._file, self._codec = file, codec
        self._ratio, self._free = ratio, free
        self._begin()

    def _begin(self) -> None:
        self._raw = Watched(self._file)
        self._stream: Any = _Xz(self._raw) if self._codec == "xz" else pa.CompressedInputStream(self._raw, self._codec)
        self._at = 0

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer at the end.

        Raises:
            BrokenStream: they cannot be unpacked.
            OSError: the file cannot be read.
        """
        parts: list[bytes] = []
        while size > 0 and (data := self._next(size)):
            parts.append(data)
            size -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, to: int) -> int:
        """Go to a byte of the contents. Raises as :meth:`read`, and :class:`BrokenStream` where they end before."""
        if to < self._at:
            self._file.seek(0)
            self._begin()
        while self._at < to:
            if not self._next(min(BLOCK, to - self._at)):
                raise BrokenStream("it ends too early")
        return to

    def _next(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except (OSError, pa.ArrowException, lzma.LZMAError, EOFError) as error:
            if self._raw.failure is not None:
                raise self._raw.failure from error
            raise BrokenStream(str(error).partition("\n")[0] or type(error).__name__) from error
        self._at += len(data)
        if self._at > max(self._free, self._ratio * self._raw.count):
            raise BrokenStream(
                f"its contents are more than {self._ratio} times as large as itself: not unpacked further"
            )
        return data


class _Xz:
    """The streams of an xz file, one after another."""

    def __init__(self, raw: Watched) -> None:
        self._raw = raw
        self._decoder = self._new()

    def _new(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_BYTES)

    def read(self, size: int) -> bytes:
        while True:
            packed = b""
            if self._decoder.eof:
                packed = (self._decoder.unused_data or self._raw.read(BLOCK)).lstrip(b"\0")
                if not packed:
                    return b""
                self._decoder = self._new()
            elif self._decoder.needs_input:
                packed = self._raw.read(BLOCK)
                if not packed:
                    raise EOFError("Truncated compressed stream")
            if data := self._decoder.decompress(packed, size):
                return data
