"""Tars as sources: which rows a broken tar gives, and what its error says."""

from __future__ import annotations

import io
import os
import random
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_queue.shared.errors import BadInput
from clip_queue.sources.formats import tars
from clip_queue.sources.source import BrokenContainer, Row, SourceError
from tests.unit.sources.tar_files import (
    EXPECTED,
    WHOLE,
    planned,
    read,
    reread,
    summary,
    tar,
)


def parted(found: list[Row]) -> tuple[list[tuple[Any, Any, Any]], str]:
    """The rows that are well, and what the last, of the whole tar, says."""
    *well, last = found
    assert all(row.error is None for row in well)
    assert isinstance(last.error, BrokenContainer)
    assert last.columns["image_path"] == "t.tar"
    return summary(well), last.error.message


def end_mark(data: bytes) -> int:
    """Where the mark begins that ends a tar."""
    return (len(data.rstrip(b"\0")) + 511) // 512 * 512


def row_starts(data: bytes) -> list[int]:
    """Where the data begin of the first member of each row."""
    starts: dict[str, int] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            starts.setdefault(member.name.rpartition(".")[0], member.offset_data)
    return list(starts.values())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(format=st.sampled_from(sorted(WHOLE)), cut=st.floats(0, 1))
def test_a_tar_cut_anywhere_gives_the_rows_before(t: Path, format: int, cut: float) -> None:
    data = WHOLE[format]
    at = min(int(cut * (end_mark(data) + 600)), len(data))
    t.write_bytes(data[:at])
    found = reread(t)
    if at >= end_mark(data) + 512:
        assert summary(found) == EXPECTED
        return
    well, message = parted(found)
    # A row is whole once the next one's first header is.
    assert well == EXPECTED[: sum(start <= at for start in row_starts(data)[1:])]
    assert f" of {at} (" in message
    assert f"after {len(well)} rows; how many rows are lost cannot be told" in message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(format=st.sampled_from(sorted(WHOLE)), seed=st.integers(0, 2**32), count=st.integers(1, 40))
def test_a_tar_with_any_bytes_changed_never_fails_or_hangs(t: Path, format: int, seed: int, count: int) -> None:
    data, chance = bytearray(WHOLE[format]), random.Random(seed)
    for _ in range(count):
        data[chance.randrange(end_mark(data) + 512)] = chance.choice((0, 1, 0x20, 0x30, 0x37, 0x80, 0xFF))
    t.write_bytes(data)
    found = reread(t)
    assert all(row.error is None or isinstance(row.error, BadInput) for row in found[:-1])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.lists(
        st.tuples(st.sampled_from("gxLKSD0125"), st.binary(max_size=12), st.binary(max_size=700)), max_size=6
    )
)
def test_wild_headers_with_good_checksums_never_fail_or_hang(t: Path, fields: list[tuple[str, bytes, bytes]]) -> None:
    t.write_bytes(b"".join(wild(*field) for field in fields) + WHOLE[tarfile.GNU_FORMAT])
    for row in reread(t):
        orjson.dumps(row.columns)


def wild(kind: str, size: bytes, data: bytes) -> bytes:
    """A header of a kind with that in the field of its size, its checksum right."""
    header = bytearray(tarfile.TarInfo("w.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = kind.encode()
    header[124 : 124 + len(size)] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data.ljust(-(-len(data) // 512) * 512, b"\0")


@pytest.mark.parametrize(
    "size",
    [
        b"\xff" * 12,
        b"\xff" * 11 + b"\x00",
        b"\x80" + b"\xff" * 11,
        b"77777777777\0",
        b"-0000000512\0",
        b"\xff" * 10 + b"\xfe\0",
    ],
)
@pytest.mark.parametrize("kind", "0LxgS5")
def test_sizes_that_lie_break_the_tar_there(t: Path, kind: str, size: bytes) -> None:
    good = tar([("a.jpg", b"1"), ("b.jpg", b"2")])
    t.write_bytes(good[: end_mark(good)] + wild(kind, size, b"") + good)
    tracemalloc.start()
    try:
        found = reread(t)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert summary(found)[0] == ("t.tar/a.jpg", b"1", None)
    if kind != "5":  # a folder's size is of no matter
        assert isinstance(found[-1].error, BrokenContainer)


def test_a_bad_header_is_no_end(t: Path) -> None:
    data = bytearray(WHOLE[tarfile.GNU_FORMAT])
    at = data.index(b"a/0002.json\0")
    data[at] ^= 0xFF
    t.write_bytes(data)
    well, message = parted(reread(t))
    assert well == EXPECTED[:1]
    assert message == (
        f"t.tar is broken at byte {at} of {len(data)} (bad checksum), after 1 rows; "
        "how many rows are lost cannot be told"
    )


@pytest.mark.parametrize("hole", [512, 4096])
def test_zeros_in_the_middle_are_no_end(t: Path, hole: int) -> None:
    data = bytearray(tar((f"{i:03}.jpg", bytes([i]) * 5000) for i in range(10)))
    at = data.index(b"005.jpg\0")
    data[at : at + hole] = bytes(hole)
    t.write_bytes(data)
    well, message = parted(reread(t))
    assert len(well) == 4  # the fifth may have had more members
    assert "data after its end mark" in message
    t.write_bytes(tar([("a.jpg", b"1")]) + tar([("b.jpg", b"1")]))
    assert "data after its end mark" in parted(reread(t))[1]


def test_img2dataset_s_count_tells_how_many_rows_are_lost(t: Path) -> None:
    t.write_bytes(WHOLE[tarfile.GNU_FORMAT][:6000])
    stats = t.with_name("t_stats.json")
    for text, said in (
        ('{"successes": 17}', "16 of its 17 rows are lost"),
        ('{"successes": 0}', "cannot be told"),
        ('{"successes": "17"}', "cannot be told"),
        ("[]", "cannot be told"),
        ("{", "cannot be told"),
    ):
        stats.write_text(text)
        well, message = parted(reread(t))
        assert len(well) == 1
        assert message.endswith(said)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"\0" * 511, b"x" * 5000, b"\x1f\x8b" + b"x" * 2000, b"x" * 10, WHOLE[tarfile.GNU_FORMAT][:700]],
)
def test_a_tar_that_is_none_is_one_error(t: Path, data: bytes) -> None:
    t.write_bytes(data)
    assert parted(reread(t))[0] == []
    with pytest.raises(SourceError, match=r"no row can be read of .*t\.tar: broken at byte"):
        planned(t)


def test_an_empty_tar_is_no_rows(t: Path) -> None:
    for data in (tar([]), bytes(512), bytes(1024), tar([("folder/", b""), ("README", b"x")])):
        t.write_bytes(data)
        assert reread(t) == []
    with pytest.raises(SourceError, match=r"t\.tar: no rows"):
        planned(t)


def test_a_tar_that_is_gone_is_one_error(t: Path, tmp_path: Path) -> None:
    (tmp_path / "u.tar").write_bytes(tar([("z.jpg", b"z")]))
    (tmp_path / "v.tar").symlink_to("gone.tar")
    done, shards = planned(tmp_path)
    t.unlink()
    found = [read(done, shard) for shard in shards]
    assert parted(found[0]) == ([], "t.tar does not exist any more; how many rows are lost cannot be told")
    assert summary(found[1]) == [("u.tar/z.jpg", b"z", None)]
    assert isinstance(found[2][0].error, BrokenContainer)
    assert set(found[0][0].columns) == {"image_path", "caption", *done.columns}


def test_a_tar_that_is_another_is_refused(t: Path) -> None:
    done, shards = planned(t)
    t.write_bytes(WHOLE[tarfile.GNU_FORMAT][:-512])
    with pytest.raises(SourceError, match=r"t\.tar has changed since it was planned"):
        read(done, shards[0])


def test_pipes_and_folders_are_no_tars(t: Path) -> None:
    done, shards = planned(t)
    t.unlink()
    os.mkfifo(t)
    with pytest.raises(OSError, match="not a regular file"):
        read(done, shards[0])
    t.unlink()
    t.mkdir()
    with pytest.raises(OSError, match="directory"):
        read(done, shards[0])


def test_what_need_not_fail_again_is_no_loss(t: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 4000:
                raise TimeoutError(110, "Connection timed out")
            return super().read(size)

    data = WHOLE[tarfile.GNU_FORMAT]
    reading = tars.Tar(Failing(data), len(data)).members()
    next(reading)
    with pytest.raises(OSError, match="timed out"):
        list(reading)
    # A store that gives less than it has.
    with pytest.raises(OSError, match="reading stopped at byte 3000 of"):
        list(tars.Tar(io.BytesIO(data[:3000]), len(data)).members())
