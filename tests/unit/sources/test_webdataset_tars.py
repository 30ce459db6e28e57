"""Tars as sources: several of them, and those of a store."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from clip_queue.shared.errors import BadImage
from clip_queue.sources.formats import tar_survey
from clip_queue.sources.source import SourceError
from tests.unit.sources.tar_files import (
    EXPECTED,
    WHOLE,
    Member,
    find,
    planned,
    read,
    rows,
    summary,
    tar,
)

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
            (row,) = read(done, shard)
            assert find(done, row.columns["image_path"]) == row.image


def test_odd_names_of_tars_are_found_again(tmp_path: Path) -> None:
    for name in ("a b.tar", "ü'\"\n.tar", "[x].tar", "{1,2}.tar", os.fsdecode(b"raw \xff.tar"), "x" * 251 + ".tar"):
        (tmp_path / name).write_bytes(tar([("k.jpg", os.fsencode(name))]))
    found = rows(tmp_path)
    assert len(found) == 6
    for row in found:
        assert find(planned(tmp_path)[0], row.columns["image_path"]) == row.image
    (single,) = rows(tmp_path / "[x].tar")
    assert single.columns["image_path"] == "[x].tar/k.jpg"


def test_a_file_without_the_suffix_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(WHOLE[tarfile.PAX_FORMAT])
    done, _ = planned(tmp_path / "data.bin")
    assert find(done, "data.bin/a/0001.jpg") == EXPECTED[0][1]


def test_what_is_not_there_is_not_found(t: Path) -> None:
    done, _ = planned(t)
    for path in ("t.tar/none.jpg", "t.tar/a/0003.jpg", "t.tar", "", "none"):
        with pytest.raises(BadImage, match="is not in"):
            find(done, path)
    with pytest.raises(FileNotFoundError):
        find(done, "u.tar/a/0001.jpg")
    outside = t.parent / "sub"
    outside.mkdir()
    (outside / "s.tar").write_bytes(tar([("k.jpg", b"k")]))
    with pytest.raises(BadImage):
        find(planned(outside)[0], "../t.tar/a/0001.jpg")


def test_images_are_found_before_a_tar_breaks(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar((f"{i}.jpg", bytes(3000)) for i in range(5))[:9000])
    done, _ = planned(tmp_path / "t.tar")
    assert find(done, "t.tar/0.jpg") == bytes(3000)
    with pytest.raises(BadImage):
        find(done, "t.tar/4.jpg")


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


def test_of_the_first_tar_all_rows_are_looked_at_and_of_the_others_the_first(tmp_path: Path) -> None:
    members: list[Member] = [(f"{i:03}.jpg", b"x") for i in range(tar_survey.SAMPLE_ROWS)]
    (tmp_path / "a.tar").write_bytes(tar([*members, ("z.txt", b"x")]))
    assert planned(tmp_path)[0].texts is True
    (tmp_path / "b.tar").write_bytes(tar([*members, ("z.txt", b"x")]))
    (tmp_path / "a.tar").write_bytes(tar(members))
    assert planned(tmp_path)[0].texts is True
    assert planned(tmp_path, texts=True)[0].texts is True, "asked for, they are looked for in all of them"
    assert [row.left_out for row in rows(tmp_path, texts=False)][-1] == ("texts",)
    (tmp_path / "b.tar").write_bytes(tar([*members[1:], ("z.txt", b"x")]))
    assert planned(tmp_path)[0].texts is True


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
    (cut, whole) = (read(done, shard) for shard in shards)
    assert summary(whole) == EXPECTED
    assert cut[-1].columns["image_path"] == "e/u.tar"
    assert cut[-1].error is not None
    assert cut[-1].error.message.endswith(f"after {len(cut) - 1} rows; {4 - len(cut) + 1} of its 4 rows are lost")
    assert find(done, "t.tar/a/0002.png") == b"second"
    assert summary(rows("memory://d/t.tar")) == EXPECTED
    assert summary(rows("memory://d/*.tar")) == EXPECTED
    memory.rm("/d/t.tar")
    (gone,) = read(done, shards[1])
    assert gone.error is not None
    assert "does not exist any more" in gone.error.message


def test_a_store_that_fails_is_not_a_broken_tar(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/d/t.tar", WHOLE[tarfile.GNU_FORMAT])
    done, shards = planned("memory://d")
    opened = memory.open

    class Dropped:
        def __init__(self, file: Any) -> None:
            self._file, self._left = file, 6

        def seek(self, to: int, whence: int = 0) -> int:
            return int(self._file.seek(to, whence))

        def read(self, size: int) -> bytes:
            self._left -= 1
            if self._left < 0:
                raise RuntimeError("the connection was lost")
            return bytes(self._file.read(size))

        def close(self) -> None: ...

    monkeypatch.setattr(memory, "open", lambda *args, **kwargs: Dropped(opened(*args, **kwargs)))
    with pytest.raises(OSError, match=r"^RuntimeError$"):
        read(done, shards[0])
    monkeypatch.setattr(memory, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "login ran out")))
    with pytest.raises(PermissionError):
        read(done, shards[0])
