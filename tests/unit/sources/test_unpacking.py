"""Compressed files are unpacked forwards; what is broken, cut or made to harm is told from a store that fails."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tracemalloc
from collections.abc import Callable

import pyarrow as pa
import pytest

from clip_queue.sources.unpacking import MAGIC_BYTES, BrokenStream, Unpacked, codec_of


def arrow(codec: str) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as out:
            out.write(data)
        packed: bytes = sink.getvalue().to_pybytes()
        return packed

    return pack


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": arrow("zstd"),
    "lz4": arrow("lz4"),
}
DATA = os.urandom(700_000) + bytes(300_000)


@pytest.mark.parametrize("codec", PACK)
def test_the_contents_come_back(codec: str) -> None:
    packed = PACK[codec](DATA)
    assert codec_of(packed[:MAGIC_BYTES]) == codec
    file = Unpacked(io.BytesIO(packed), codec)
    assert file.read(100) == DATA[:100]
    assert file.seek(600_000) == file.tell() == 600_000
    assert file.read(10**9) == DATA[600_000:]
    assert file.read(5) == b""
    file.seek(7)
    assert file.read(9) == DATA[7:16]
    assert Unpacked(io.BytesIO(packed + packed), codec).read(10**9) == DATA + DATA  # as `cat a.gz b.gz` makes them


@pytest.mark.parametrize("codec", PACK)
def test_what_is_cut_off_or_broken_is_told(codec: str) -> None:
    packed = PACK[codec](DATA)
    wrong = bytearray(packed)
    wrong[1000:1100] = bytes(100)
    for data in (
        packed[: len(packed) // 2],
        packed[:20],
        *([bytes(wrong)] if codec not in ("zstd", "lz4") else []),
    ):  # these have no checksum
        file = Unpacked(io.BytesIO(data), codec)
        with pytest.raises(BrokenStream):
            list(iter(lambda file=file: file.read(50_000), b""))  # type: ignore[misc]
    with pytest.raises(BrokenStream, match="too early"):
        Unpacked(io.BytesIO(packed), codec).seek(len(DATA) + 1)


@pytest.mark.parametrize("codec", PACK)
def test_a_store_that_fails_is_not_a_broken_file(codec: str) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 300_000:
                raise ConnectionResetError("gone")
            return super().read(min(size or -1, 100_000))

    file = Unpacked(Failing(PACK[codec](DATA)), codec)
    with pytest.raises(ConnectionResetError, match="gone"):
        file.seek(690_000)


@pytest.mark.parametrize("codec", PACK)
def test_a_bomb_ends_in_bounded_memory(codec: str) -> None:
    packed = PACK[codec](bytes(2**26))
    tracemalloc.start()
    try:
        with pytest.raises(BrokenStream, match="times as large as itself"):
            Unpacked(io.BytesIO(packed), codec, ratio=50, free=2**22).seek(2**26)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_names_of_members_are_no_codec() -> None:
    for head in (b"BZh9 is a name", b"photo.jpg\0", b"", b"\x1f"):
        assert codec_of(head[:MAGIC_BYTES]) is None
