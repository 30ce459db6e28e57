"""Tars as sources: what makes a row, and what is said of a tar that breaks."""

from __future__ import annotations

import io
import os
import random
import tarfile
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulk.formats import tars, webdataset
from bulk.source import BrokenContainer, Format, Piece, Row, Source, SourceError
from shared.errors import BadImage, BadInput
from shared.settings import get_settings

Member = tuple[str | tarfile.TarInfo, bytes]

# A tar's rows that everything is tried on: names long enough for extended headers, pictures across blocks.
MEMBERS: list[Member] = [
    ("a/0001.jpg", b"\xff\xd8" * 700),
    ("a/0001.txt", b"the first\n"),
    ("a/0001.json", orjson.dumps({"width": 3, "caption": "json's", "license": "CC0"})),
    ("a/0002.png", b"second"),
    ("a/0002.json", orjson.dumps({"width": 4, "caption": "only json's"})),
    ("b/" + "n" * 150 + ".jpg", b"third"),
    ("b/日本.webp", b""),
    ("b/日本.txt", "ü".encode()),
]
EXPECTED = [
    ("t.tar/a/0001.jpg", b"\xff\xd8" * 700, "the first"),
    ("t.tar/a/0002.png", b"second", "only json's"),
    ("t.tar/b/" + "n" * 150 + ".jpg", b"third", None),
    ("t.tar/b/日本.webp", b"", "ü"),
]


def tar(members: Iterable[Member], format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def special(name: str, kind: bytes, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "a.jpg"
    return info


def source(url: object, **about: Any) -> Source:
    return Source(str(url), Format.WEBDATASET, **about)


def planned(url: object, **about: Any) -> tuple[Source, list[list[Piece]]]:
    done, shards = webdataset.plan(source(url, **about), 10_000)
    listed = list(shards)
    assert all(shard.rows is None and len(shard.pieces) == 1 for shard in listed)
    return done, [shard.pieces for shard in listed]


def rows(url: object, **about: Any) -> list[Row]:
    done, shards = planned(url, **about)
    return [row for shard in shards for row in webdataset.read(done, shard)]


def shown(found: Iterable[Row]) -> list[tuple[Any, Any, Any]]:
    return [(row.columns["image_path"], row.image, row.text) for row in found]


def reread(path: Path, **about: Any) -> list[Row]:
    """The rows of a tar that is as it is, though the plan was made when it was whole."""
    done = source(path, **{"images": True, "texts": True, "storage": {"root": str(path.parent)}, **about})
    return list(webdataset.read(done, [Piece(os.fsencode(path), size=path.stat().st_size)]))


@pytest.fixture
def t(tmp_path: Path) -> Path:
    path = tmp_path / "t.tar"
    path.write_bytes(tar(MEMBERS))
    return path


@pytest.fixture
def memory() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


# Rows


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_a_name_are_a_row(t: Path, format: int) -> None:
    t.write_bytes(tar(MEMBERS, format))
    found = rows(t)
    assert shown(found) == EXPECTED
    assert all(row.error is None and row.columns["caption"] == row.text for row in found)
    for path, data, _ in EXPECTED:
        assert webdataset.find(planned(t)[0], path) == data


def test_their_json_is_their_columns(t: Path) -> None:
    done, _ = planned(t)
    assert list(done.columns) == ["key", "width", "license", "extra"]
    assert done.columns["width"] == "int64"
    first, second, third, _ = rows(t)
    own = {name: first.columns[name] for name in done.columns}
    assert own == {"key": "a/0001", "width": 3, "license": "CC0", "extra": None}
    assert (second.columns["key"], second.columns["license"]) == ("a/0002", None)
    assert third.columns["width"] is None
    given_ones = rows(t, columns={"license": "string"})
    assert set(given_ones[0].columns) == {"image_path", "caption", "license"}


def test_what_is_embedded_is_learnt_from_the_first_rows(tmp_path: Path) -> None:
    def learnt(*members: Member, **about: Any) -> tuple[bool | None, bool | None]:
        (tmp_path / "t.tar").write_bytes(tar(members))
        done, _ = planned(tmp_path / "t.tar", **about)
        return done.images, done.texts

    assert learnt(("a.jpg", b"x")) == (True, False)
    assert learnt(("a.jpg", b"x"), ("b.jpg", b"x"), ("b.txt", b"x")) == (True, True)
    assert learnt(("a.txt", b"x")) == (False, True)
    assert learnt(("a.json", b'{"caption": "x"}')) == (False, True)
    assert learnt(("a.jpg", b"x"), ("a.json", b'{"caption": 3}')) == (True, False)
    assert learnt(("a.jpg", b"x"), ("a.txt", b" ")) == (True, False)
    assert learnt(("a.jpg", b"x"), ("a.txt", b"x"), texts=False) == (True, False)
    assert learnt(("a.jpg", b"x"), ("a.txt", b"x"), images=False) == (False, True)
    assert learnt(("a.jpg", b"x"), texts=True) == (True, True)
    for about in ({}, {"images": False}, {"texts": False}):
        with pytest.raises(SourceError, match="nothing that is wanted"):
            learnt(("a.cls", b"x"), **about)


def test_without_images_pictures_are_not_read(t: Path) -> None:
    found = rows(t, images=False)
    assert [(path, None, text) for path, _, text in EXPECTED] == shown(found)
    assert all(row.error is None for row in found)


def test_names_are_split_as_webdataset_splits_them(tmp_path: Path) -> None:
    names = [
        "./0.jpg", "x/0.jpg", "y/0.JPG", "a.b/c.jpg", ".hidden.jpg", "d/._0.jpg", "README", "e/noext", "f.v2.jpg",
        "g h'\"\n.jpg", "-rf.jpg", "../up.jpg", "/abs.jpg", "\\xff.jpg",
    ]  # fmt: skip
    raw = tarfile.TarInfo("raw \udcff.jpg")
    (tmp_path / "t.tar").write_bytes(tar([*((name, name.encode()) for name in names), (raw, b"raw")]))
    found = rows(tmp_path / "t.tar")
    kept = [name for name in names if name not in (".hidden.jpg", "d/._0.jpg", "README", "e/noext", "f.v2.jpg")]
    pictures = [row for row in found if row.error is None]
    assert shown(pictures) == [
        *((f"t.tar/{name}", name.encode(), None) for name in kept),
        ("t.tar/raw \\xff.jpg", b"raw", None),
    ]
    assert [row.columns["key"] for row in pictures][:4] == ["./0", "x/0", "y/0", "a.b/c"]
    (other,) = (row for row in found if row.error is not None)
    assert other.columns["image_path"] == "t.tar/f"
    assert other.error is not None
    assert other.error.message.endswith("The row has no picture, only .v2.jpg.")
    for row in pictures:
        assert webdataset.find(planned(tmp_path / "t.tar")[0], row.columns["image_path"]) == row.image
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.tar"]


def test_only_members_in_a_row_are_one(tmp_path: Path) -> None:
    members: list[Member] = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("c.jpg", b"4"), ("c.jpg", b"5")]
    (tmp_path / "t.tar").write_bytes(tar([*members, ("d.png", b"6"), ("d.jpg", b"7"), ("d.txt", b"8")]))
    found = rows(tmp_path / "t.tar")
    assert shown(found) == [
        ("t.tar/a.jpg", b"1", None),
        ("t.tar/b.jpg", b"2", None),
        ("t.tar/a", None, "3"),
        ("t.tar/c.jpg", b"4", None),
        ("t.tar/c.jpg", b"5", None),
        ("t.tar/d.png", b"6", "8"),
    ]
    assert isinstance(found[2].error, BadImage)


# Rows that fail


def test_a_row_s_error_is_its_own(tmp_path: Path) -> None:
    members: list[Member] = [
        ("0.jpg", b"x"), ("0.txt", b"fine"),
        ("1.jpg", b"x"), ("1.txt", b"caf\xe9"),
        ("2.jpg", b"x"), ("2.json", b"{"),
        ("3.jpg", b"x"), ("3.json", b"[1]"),
        ("4.jpg", b"x"), ("4.json", b'{"a": NaN, "caption": "nan"}'),
        ("5.jpg", b"x"), ("5.json", b'{"caption": "\\ud800"}'),
        ("6.jpg", b"x"), ("6.json", b"[" * 100_000),
        ("7.jpg", b"x"), ("7.json", b""),
        ("8.txt", b"alone"),
        (special("9.jpg", tarfile.SYMTYPE), b""),
        (special("10.jpg", tarfile.LNKTYPE), b""),
        (special("11.jpg", tarfile.FIFOTYPE), b""),
        (special("12.jpg", tarfile.DIRTYPE), b""),
        ("13.jpg", b"\xef\xbb\xbf"), ("13.txt", b"\xef\xbb\xbfbom"), ("13.json", b'\xef\xbb\xbf{"a": 1}'),
    ]  # fmt: skip
    (tmp_path / "t.tar").write_bytes(tar(members))
    found = {row.columns["key"]: row for row in rows(tmp_path / "t.tar")}
    errors = {key: row.error.message for key, row in found.items() if row.error}
    assert list(found) == [str(i) for i in range(14) if i != 12]
    assert sorted(errors, key=int) == ["1", "2", "3", "5", "6", "7", "8", "9", "10", "11"]
    assert errors["1"] == "1.txt is not UTF-8"
    assert errors["2"].startswith("2.json is not JSON: ")
    assert errors["3"] == "3.json is no object"
    assert errors["8"].endswith("The row has no picture, only .txt.")
    assert errors["9"] == "9.jpg is a link or a device, or has holes"
    assert (found["4"].columns["a"], found["4"].text) == (None, "nan")
    assert (found["13"].columns["a"], found["13"].text) == (1, "bom")
    for row in found.values():
        orjson.dumps(row.columns)


def test_without_texts_a_caption_that_is_none_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar([("1.jpg", b"x"), ("1.txt", b"caf\xe9"), ("2.jpg", b"x"), ("2.txt", b"good")]))
    assert [(row.error, row.text) for row in rows(tmp_path / "t.tar", texts=False)] == [(None, None), (None, "good")]


def test_large_members_are_passed_over_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_MAX_IMAGE_BYTES", str(2**20))
    get_settings.cache_clear()
    try:
        large = bytes(64 * 2**20)
        members: list[Member] = [
            ("1.jpg", large),
            ("1.txt", b"x"),
            ("2.jpg", b"x"),
            ("2.txt", large),
            ("2.json", large),
        ]
        (tmp_path / "t.tar").write_bytes(tar([*members, ("3.jpg", bytes(2**20)), ("4.mp4", large), ("4.jpg", b"x")]))
        del large, members
        done, shards = planned(tmp_path / "t.tar", texts=True)
        tracemalloc.start()
        try:
            found = list(webdataset.read(done, shards[0]))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    finally:
        get_settings.cache_clear()
    assert peak < 4 * 2**20
    assert [row.error and row.error.message for row in found] == [
        f"1.jpg has {64 * 2**20} bytes, {2**20} at most",
        f"2.txt has {64 * 2**20} bytes, {2**20} at most",
        None,
        None,
    ]
    assert [row.text for row in found] == ["x", None, None, None]


# Tars that break


def parted(found: list[Row]) -> tuple[list[tuple[Any, Any, Any]], str]:
    """The rows that are well, and what the last, of the whole tar, says."""
    *well, last = found
    assert all(row.error is None for row in well)
    assert isinstance(last.error, BrokenContainer)
    assert last.columns["image_path"] == "t.tar"
    return shown(well), last.error.message


WHOLE = {format: tar(MEMBERS, format) for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)}


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
        assert shown(found) == EXPECTED
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
    assert shown(found)[0] == ("t.tar/a.jpg", b"1", None)
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
    found = [list(webdataset.read(done, shard)) for shard in shards]
    assert parted(found[0]) == ([], "t.tar does not exist any more; how many rows are lost cannot be told")
    assert shown(found[1]) == [("u.tar/z.jpg", b"z", None)]
    assert isinstance(found[2][0].error, BrokenContainer)
    assert set(found[0][0].columns) == {"image_path", "caption", *done.columns}


def test_a_tar_that_is_another_is_refused(t: Path) -> None:
    done, shards = planned(t)
    t.write_bytes(WHOLE[tarfile.GNU_FORMAT][:-512])
    with pytest.raises(SourceError, match=r"t\.tar has changed since it was planned"):
        list(webdataset.read(done, shards[0]))


def test_pipes_and_folders_are_no_tars(t: Path) -> None:
    done, shards = planned(t)
    t.unlink()
    os.mkfifo(t)
    with pytest.raises(OSError, match="not a regular file"):
        list(webdataset.read(done, shards[0]))
    t.unlink()
    t.mkdir()
    with pytest.raises(OSError, match="directory"):
        list(webdataset.read(done, shards[0]))


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


# Several tars


def test_tars_are_named_below_their_folder(tmp_path: Path) -> None:
    for name in ("1/00000.tar", "1/00001.tar", "2/00000.TAR", "a.tar b/c d.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(tar([("x.tar/k.jpg", name.encode())]))
    (tmp_path / "2" / "notes.txt").write_text("x")
    found = rows(tmp_path)
    assert [row.columns["image_path"] for row in found] == [
        "1/00000.tar/x.tar/k.jpg",
        "1/00001.tar/x.tar/k.jpg",
        "2/00000.TAR/x.tar/k.jpg",
        "a.tar b/c d.tar/x.tar/k.jpg",
    ]
    for url in (tmp_path, tmp_path / "*/*.[tT][aA][rR]", tmp_path / "{1,2}/0000{0..1}.tar"):
        if "{" in str(url):
            (tmp_path / "2/00000.TAR").rename(tmp_path / "2/00000.tar")
            (tmp_path / "2/00001.tar").write_bytes(tar([("k.jpg", b"new")]))
        done, shards = planned(url)
        for shard in shards:
            (row,) = webdataset.read(done, shard)
            assert webdataset.find(done, row.columns["image_path"]) == row.image


def test_odd_names_of_tars_are_found_again(tmp_path: Path) -> None:
    for name in ("a b.tar", "ü'\"\n.tar", "[x].tar", "{1,2}.tar", os.fsdecode(b"raw \xff.tar"), "x" * 251 + ".tar"):
        (tmp_path / name).write_bytes(tar([("k.jpg", os.fsencode(name))]))
    found = rows(tmp_path)
    assert len(found) == 6
    for row in found:
        assert webdataset.find(planned(tmp_path)[0], row.columns["image_path"]) == row.image
    (single,) = rows(tmp_path / "[x].tar")
    assert single.columns["image_path"] == "[x].tar/k.jpg"


def test_a_file_without_the_suffix_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(WHOLE[tarfile.PAX_FORMAT])
    done, _ = planned(tmp_path / "data.bin")
    assert webdataset.find(done, "data.bin/a/0001.jpg") == EXPECTED[0][1]


def test_what_is_not_there_is_not_found(t: Path) -> None:
    done, _ = planned(t)
    for path in ("t.tar/none.jpg", "t.tar/a/0003.jpg", "t.tar", "", "none"):
        with pytest.raises(BadImage, match="is not in"):
            webdataset.find(done, path)
    with pytest.raises(FileNotFoundError):
        webdataset.find(done, "u.tar/a/0001.jpg")
    outside = t.parent / "sub"
    outside.mkdir()
    (outside / "s.tar").write_bytes(tar([("k.jpg", b"k")]))
    with pytest.raises(BadImage):
        webdataset.find(planned(outside)[0], "../t.tar/a/0001.jpg")


def test_pictures_are_found_before_a_tar_breaks(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar((f"{i}.jpg", bytes(3000)) for i in range(5))[:9000])
    done, _ = planned(tmp_path / "t.tar")
    assert webdataset.find(done, "t.tar/0.jpg") == bytes(3000)
    with pytest.raises(BadImage):
        webdataset.find(done, "t.tar/4.jpg")


def test_the_first_tars_may_be_broken(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.tar").write_bytes(b"x" * 1024)
    (tmp_path / "3.tar").write_bytes(tar([("a.jpg", b"x"), ("a.txt", b"x")])[:2048])
    (tmp_path / "4.tar").write_bytes(tar([("a.jpg", b"x"), ("a.txt", b"x")]))
    done, shards = planned(tmp_path)
    assert (done.images, done.texts, len(shards)) == (True, True, 5)
    (tmp_path / "4.tar").unlink()
    with pytest.raises(SourceError) as caught:
        planned(tmp_path)
    assert all(f"{i}.tar: broken at byte" in caught.value.message for i in range(4))


def test_no_more_than_the_first_rows_are_looked_at(tmp_path: Path) -> None:
    members: list[Member] = [(f"{i:03}.jpg", b"x") for i in range(webdataset.LOOK)]
    (tmp_path / "t.tar").write_bytes(tar([*members, ("z.txt", b"x")]))
    assert planned(tmp_path / "t.tar")[0].texts is False
    (tmp_path / "t.tar").write_bytes(tar([*members[1:], ("z.txt", b"x")]))
    assert planned(tmp_path / "t.tar")[0].texts is True


@pytest.mark.parametrize("name", ["t.tar.gz", "t.tgz", "t.TAR.GZ", "t.tar.zst"])
def test_compressed_tars_are_refused(t: Path, name: str) -> None:
    t.with_name(name).write_bytes(b"x")
    for url in (t.with_name(name), t.parent, t.parent / "t.*"):
        with pytest.raises(SourceError, match=r"compressed.*decompress it to a \.tar"):
            planned(url)


def test_no_tar_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    for url in (tmp_path, tmp_path / "gone.tar", tmp_path / "*.tar"):
        with pytest.raises(SourceError):
            planned(url)


# Elsewhere


def test_a_store_s_tars_are_read(memory: Any) -> None:
    memory.pipe({"/d/t.tar": WHOLE[tarfile.GNU_FORMAT], "/d/e/u.tar": WHOLE[tarfile.PAX_FORMAT][:6000]})
    memory.pipe("/d/e/u_stats.json", b'{"successes": 4}')
    done, shards = planned("memory://d")
    # The folder below comes first by its path.
    (cut, whole) = ([*webdataset.read(done, shard)] for shard in shards)
    assert shown(whole) == EXPECTED
    assert cut[-1].columns["image_path"] == "e/u.tar"
    assert cut[-1].error is not None
    assert cut[-1].error.message.endswith(f"after {len(cut) - 1} rows; {4 - len(cut) + 1} of its 4 rows are lost")
    assert webdataset.find(done, "t.tar/a/0002.png") == b"second"
    assert shown(rows("memory://d/t.tar")) == EXPECTED
    assert shown(rows("memory://d/*.tar")) == EXPECTED
    memory.rm("/d/t.tar")
    (gone,) = webdataset.read(done, shards[1])
    assert gone.error is not None
    assert "does not exist any more" in gone.error.message


def test_a_store_that_fails_is_not_a_broken_tar(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/d/t.tar", WHOLE[tarfile.GNU_FORMAT])
    done, shards = planned("memory://d")
    opened = memory.open

    class Dropped:
        def __init__(self, file: Any) -> None:
            self._file, self._left = file, 5

        def read(self, size: int) -> bytes:
            self._left -= 1
            if self._left < 0:
                raise RuntimeError("the connection was lost")
            return bytes(self._file.read(size))

        def __enter__(self) -> Dropped:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(memory, "open", lambda *args, **kwargs: Dropped(opened(*args, **kwargs)))
    with pytest.raises(OSError):
        list(webdataset.read(done, shards[0]))
    monkeypatch.setattr(memory, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "login ran out")))
    with pytest.raises(PermissionError):
        list(webdataset.read(done, shards[0]))
