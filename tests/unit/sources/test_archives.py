"""Compressed tars and zips: their rows are those of a tar; what is broken or made to harm costs its own."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from clip_queue.shared.errors import ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry, unpacking
from clip_queue.sources.detect import detect
from clip_queue.sources.source import Row, Source, SourceError
from tests.unit.sources.tar_files import EXPECTED, MEMBERS, SETTINGS, tar
from tests.unit.sources.test_unpacking import PACK

NAMES = {"gzip": "t.tar.gz", "bz2": "t.tbz2", "xz": "t.tar.xz", "zstd": "t.TAR.ZST", "lz4": "t.tar.lz4"}


def rows(url: object, settings: Settings = SETTINGS, **about: Any) -> tuple[Source, list[Row]]:
    done, shards = registry.plan_shards(Source(str(url), detect(str(url)), **about), 10_000, settings)
    return done, [row for shard in shards for row in registry.read(done, shard.pieces, settings)]


def of(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.columns["image_path"].partition("/")[2], row.image, row.text) for row in rows]


WHAT = [(path.partition("/")[2], image, text) for path, image, text in EXPECTED]


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("codec", PACK)
def test_a_compressed_tar_has_the_rows_of_the_tar(tmp_path: Path, memory: Any, codec: str) -> None:
    packed = PACK[codec](tar(MEMBERS))
    (tmp_path / NAMES[codec]).write_bytes(packed)
    memory.pipe(f"/d/{NAMES[codec]}", packed)
    for url in (tmp_path / NAMES[codec], tmp_path, f"memory://d/{NAMES[codec]}"):
        done, found = rows(url)
        assert of(found) == WHAT
        assert done.format == "webdataset"
        assert found[0].columns["license"] == "CC0"
        for row in found:
            assert registry.find_image(done, row.columns["image_path"], SETTINGS) == row.image


def test_the_name_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(PACK["gzip"](tar(MEMBERS)))
    (tmp_path / "b.tar.gz").write_bytes(tar(MEMBERS))
    zipped(tmp_path / "c.tar", {name: data for name, data in MEMBERS if isinstance(name, str)})
    _, found = rows(tmp_path)
    assert of(found[:4]) == of(found[4:8]) == WHAT
    assert sorted(map(str, of(found[8:]))) == sorted(map(str, WHAT))


@pytest.mark.parametrize("codec", PACK)
def test_a_compressed_tar_that_is_cut_keeps_the_rows_before(tmp_path: Path, codec: str) -> None:
    members = [(f"{i:03}.jpg", os.urandom(40_000)) for i in range(40)]
    packed = PACK[codec](tar(members))
    (tmp_path / NAMES[codec]).write_bytes(packed[: len(packed) * 3 // 4])
    _, found = rows(tmp_path)
    assert [row.image for row in found[:-1]] == [data for _, data in members[: len(found) - 1]]
    assert found[-1].error is not None
    assert "is broken at byte" in found[-1].error.message
    assert len(found) > (2 if codec == "bz2" else 20)


@pytest.mark.parametrize("codec", PACK)
def test_a_bomb_is_a_broken_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    monkeypatch.setattr(unpacking.Unpacked.__init__, "__kwdefaults__", {"ratio": 50, "free": 2**22})
    for number, bomb in enumerate((bytes(2**25), tar([("z.jpg", bytes(2**25))]), tar(MEMBERS) + bytes(2**25))):
        path = tmp_path / f"{number}" / NAMES[codec]
        path.parent.mkdir()
        path.write_bytes(PACK[codec](tar(MEMBERS).rstrip(b"\0") + bytes(400) + bomb if number == 1 else bomb))
        try:
            _, found = rows(path)
        except SourceError as error:
            assert "no row can be read" in error.message  # noqa: PT017 - either is right
            continue
        assert found[-1].error is not None
        assert "broken" in found[-1].error.message


def test_a_zip_has_the_rows_of_a_tar(tmp_path: Path, memory: Any) -> None:
    members = {name: data for name, data in reversed(MEMBERS) if isinstance(name, str)}
    path = zipped(tmp_path / "t.zip", {"__MACOSX/a/._0001.jpg": b"x", "a/": b"", **members})
    memory.pipe("/d/t.zip", path.read_bytes())
    for url in (path, tmp_path, tmp_path / "*.zip", "memory://d/t.zip"):
        done, found = rows(url)
        assert done.format == "zip"
        assert of(found) == WHAT
        for row in found:
            assert registry.find_image(done, row.columns["image_path"], SETTINGS) == row.image


def test_what_is_broken_in_a_zip_is_its_rows_error(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    good = {f"{name}.jpg": name.encode() * 50 for name in "abcdefg"}
    zipped(path, good, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("h.jpg", b"h" * 50)
    data = bytearray(path.read_bytes())
    data[data.index(b"b" * 50)] ^= 1  # its checksum is wrong
    start = data.rindex(b"PK\1\2", 0, data.rindex(b"c.jpg"))
    data[start + 8] |= 1  # encrypted, as the directory says
    start = data.rindex(b"PK\1\2", 0, data.rindex(b"d.jpg"))
    data[start + 24 : start + 28] = (2**31).to_bytes(4, "little")  # its size, unpacked
    path.write_bytes(data)
    _, found = rows(path)
    errors = {row.columns["image_path"]: row.error.message for row in found if row.error}
    assert list(errors) == [f"t.zip/{name}.jpg" for name in "bcdh"]
    assert "checksum" in errors["t.zip/b.jpg"].lower() or "CRC" in errors["t.zip/b.jpg"]
    assert "encrypted" in errors["t.zip/c.jpg"]
    assert "bytes" in errors["t.zip/d.jpg"]
    assert "a way that is not read here" in errors["t.zip/h.jpg"]
    assert [row.image for row in found if not row.error] == [good[f"{name}.jpg"] for name in "aefg"]


def test_a_lie_about_a_members_size_is_not_unpacked(tmp_path: Path) -> None:
    path = zipped(tmp_path / "t.zip", {"a.jpg": bytes(2**26), "b.jpg": b"b"})
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    data[start + 24 : start + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    _, found = rows(path)
    assert [bool(row.error) for row in found] == [True, False]


def test_a_zip_that_is_cut_off_says_so(tmp_path: Path) -> None:
    path = zipped(tmp_path / "t.zip", {"a.jpg": b"a" * 100})
    path.write_bytes(path.read_bytes()[:-30])
    zipped(tmp_path / "u.zip", {"b.jpg": b"b"})
    _, found = rows(tmp_path)
    assert [row.image for row in found] == [None, b"b"]
    assert found[0].error is not None
    assert found[0].error.message.startswith("t.zip is broken")


def test_a_zip_beside_images_is_what_they_came_in(tmp_path: Path) -> None:
    zipped(tmp_path / "all.zip", {"a.jpg": b"a"})
    (tmp_path / "README.txt").write_text("read me")
    assert detect(str(tmp_path)) == "zip"
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(b"a")
    assert detect(str(tmp_path)) == "folder"


def test_an_image_that_is_not_in_the_zip(tmp_path: Path) -> None:
    done, _ = rows(zipped(tmp_path / "t.zip", {"a.jpg": b"a"}))
    with pytest.raises(ClipError, match=r"t\.zip/b\.jpg is not in"):
        registry.find_image(done, "t.zip/b.jpg", SETTINGS)
    assert io.BytesIO(registry.find_image(done, "t.zip/a.jpg", SETTINGS)).read() == b"a"
