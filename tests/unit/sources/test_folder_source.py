"""A folder as a source: whether it is one, its shards, captions and images, here and in a store."""

from __future__ import annotations

import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources.formats import folder, image_files
from clip_queue.sources.source import BrokenContainer, SourceError
from tests.unit.sources.folders import SETTINGS, find, loaded, paths, pieces, planned, put, rows, source
from tests.unit.sources.tables import why

# What is no source


@pytest.mark.parametrize("make", [lambda p: None, lambda p: put(p, "a.txt", "b/c.svg", ".d.jpg")])
def test_without_an_image_it_says_what_was_looked_for(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    with pytest.raises(SourceError) as caught:
        rows(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert ".jpg" in caught.value.message
    assert ".jp2" in caught.value.message


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    put(tmp_path, "a.pdf")
    for name in ("gone", "gone.jpg", "a.pdf"):
        with pytest.raises(SourceError, match="no folder of that name, and no image"):
            rows(tmp_path / name)


@pytest.mark.parametrize("column", ["image_column", "text_column"])
def test_it_has_no_columns(tmp_path: Path, column: str) -> None:
    put(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match="a folder of images has no columns"):
        rows(tmp_path, **{column: "caption"})


def test_an_image_is_a_source(tmp_path: Path) -> None:
    put(tmp_path, "a b.jpg", "c.jpg", "c.txt")
    assert paths(tmp_path / "a b.jpg") == ["a b.jpg"]
    assert not pieces(tmp_path / "a b.jpg")[0].texts
    (row,) = rows(tmp_path / "c.jpg")
    assert row.text == "c.txt"
    assert loaded(row) == find(tmp_path / "c.jpg", "c.jpg") == b"c.jpg"


# Shards


@pytest.mark.parametrize("size", [1, 3, 10, 11, 100])
def test_all_shards_but_the_last_are_full(tmp_path: Path, size: int) -> None:
    put(tmp_path, *(f"{i % 3}/{i}.jpg" for i in range(10)))
    _, shards = planned(tmp_path, size)
    counts = [(len(shard.pieces), shard.rows) for shard in shards]
    assert counts == [(size, size)] * (10 // size) + ([(10 % size, 10 % size)] if 10 % size else [])


def test_a_plan_is_made_as_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"{i:03}/{j:03}.jpg" for i in range(50) for j in range(20)))
    looks = []
    scandir = os.scandir
    monkeypatch.setattr(image_files.os, "scandir", lambda path: (looks.append(path), scandir(path))[1])
    _, shards = folder.plan_shards(source(tmp_path, texts=False), 40, SETTINGS, sample_rows=30)
    assert len(looks) == 2
    next(shards)
    assert len(looks) == 3
    assert sum(shard.rows or 0 for shard in shards) == 960


def test_a_plan_of_many_files_takes_little_memory(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / str(i)).mkdir()
        for j in range(250):
            os.close(os.open(tmp_path / str(i) / f"{j}.jpg", os.O_CREAT | os.O_WRONLY))
    _, shards = folder.plan_shards(source(tmp_path, texts=False), 500, SETTINGS)
    tracemalloc.start()
    try:
        assert sum(shard.rows or 0 for shard in shards) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


# Captions


def test_captions_lie_beside(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "c.tar.jpg", "d.jpg", "d.png", "e.jpg", "sub/b.txt", "f.jpg", "a.txt.txt")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf  a caption, \xc3\xbcber \n")
    (tmp_path / "c.tar.txt").write_text("dotted")
    (tmp_path / "d.TXT").write_text("of both")
    (tmp_path / "e.txt").write_text(" \n")
    (tmp_path / "f.txt").write_text("small wins")
    (tmp_path / "f.TXT").write_text("capital")
    found = rows(tmp_path)
    assert [(row.columns["image_path"], row.text) for row in found] == [
        ("a.jpg", "a caption, über"),
        ("b.jpg", None),
        ("c.tar.jpg", "dotted"),
        ("d.jpg", "of both"),
        ("d.png", "of both"),
        ("e.jpg", None),
        ("f.jpg", "small wins"),
    ]
    assert all(row.columns["caption"] == row.text and row.error is None for row in found)


def test_a_caption_that_cannot_be_read_is_its_row_s_error(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg", "d.txt")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"x" * (folder.CAPTION_BYTES + 1))
    (tmp_path / "c.txt").symlink_to("gone.txt")
    found = rows(tmp_path)
    errors = [why(row) for row in found]
    assert all(row.error is None and callable(row.image) for row in found)
    assert [error and (type(error), error.message.removeprefix(f"caption {tmp_path}/")) for error in errors] == [
        (BadInput, "a.txt is not UTF-8"),
        (BadInput, f"b.txt is larger than {folder.CAPTION_BYTES} bytes"),
        (BadInput, "c.txt cannot be read: No such file or directory"),
        None,
    ]
    without = rows(tmp_path, texts=False)
    assert [(row.error, row.text) for row in without] == [(None, None)] * 3 + [(None, "d.txt")]


def test_captions_are_embedded_wherever_they_begin(
    tmp_path: Path,
) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "c/d.jpg", "c/d.txt")
    assert pieces(tmp_path)[0].texts is True
    assert pieces(tmp_path)[0].images is True
    assert pieces(tmp_path, texts=False)[0].texts is False
    assert pieces(tmp_path / "c", images=False)[0].images is False
    for asked in (None, True):
        done, _ = folder.plan_shards(source(tmp_path, texts=asked), 100, SETTINGS, sample_rows=2)
        assert done.texts is True


def test_texts_that_are_asked_for_and_not_there_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.txt")
    with pytest.raises(SourceError, match="no image has a caption"):
        pieces(tmp_path, texts=True)


def test_files_of_other_kinds_are_counted_by_suffix(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "a.txt", "notes.txt", "d/x.svg", "d/y.SVG", "Makefile", ".hidden.svg", ".git/x", "d/z.psd")
    done, _ = pieces(tmp_path)
    assert done.storage["passed"] == {
        "": [1, "Makefile"],
        ".txt": [1, "notes.txt"],
        ".svg": [2, "d/x.svg"],
        ".psd": [1, "d/z.psd"],
    }


def test_what_is_not_embedded_of_an_image_is_noted(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "a.txt", "b.jpg")
    assert [row.left_out for row in rows(tmp_path, texts=False)] == [("texts",), ()]
    assert [row.left_out for row in rows(tmp_path, images=False)] == [("images",), ("images",)]
    assert [row.left_out for row in rows(tmp_path)] == [(), ()]


def test_captions_may_be_embedded_alone(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "b.txt")
    assert [(row.image, row.text) for row in rows(tmp_path, images=False)] == [(None, None), (None, "b.txt")]
    (tmp_path / "b.txt").unlink()
    for about in ({"images": False}, {"images": False, "texts": False}):
        with pytest.raises(SourceError, match="images are not wanted"):
            rows(tmp_path, **about)


# Images


def test_no_more_than_the_limit_is_read_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x" * 5000)
    (tmp_path / "b.jpg").write_bytes(b"")
    settings = Settings(max_image_bytes=1024)
    first, second = rows(tmp_path, settings)
    assert len(loaded(first)) == 1025
    assert loaded(second) == b""
    assert len(folder.find_image(source(tmp_path), "a.jpg", settings)) == 1025


@pytest.mark.parametrize("path", ["../a.jpg", "x/../../a.jpg", ".."])
def test_what_is_found_is_in_the_source(tmp_path: Path, path: str) -> None:
    put(tmp_path, "a.jpg", "in/b.jpg")
    with pytest.raises(BadInput):
        find(tmp_path / "in", path)
    with pytest.raises(OSError):
        find(tmp_path / "in", "/" + str(tmp_path / "a.jpg"))


# Elsewhere


def test_a_store_is_walked_folder_by_folder(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jpg", "a/z.png", "a/z.txt", "ü n.jpg", ".h/x.jpg", "notes.pdf", "a/b/c.GIF"):
        memory.pipe(f"/pics/{name}", name.encode())
    monkeypatch.setattr(memory, "find", None)  # would be the whole tree
    done, shards = planned("memory://pics", 2)
    assert [len(shard.pieces) for shard in shards] == [2, 2]
    found = [row for shard in shards for row in folder.read(done, shard.pieces, SETTINGS)]
    expected = ["b.jpg", "ü n.jpg", "a/z.png", "a/b/c.GIF"]
    assert [row.columns["image_path"] for row in found] == expected
    assert [loaded(row).decode() for row in found] == expected
    assert [row.text for row in found] == [None, None, "a/z.txt", None]
    assert find("memory://pics", "ü n.jpg") == "ü n.jpg".encode()
    assert paths("memory://pics/a/") == ["z.png", "b/c.GIF"]


def test_a_store_s_image_is_a_source(memory: Any) -> None:
    memory.pipe({"/p/a.jpg": b"a", "/p/a.txt": b"text"})
    (row,) = rows("memory://p/a.jpg")
    assert (row.columns["image_path"], row.text, loaded(row)) == ("a.jpg", "text", b"a")


def test_an_empty_store_is_no_source(memory: Any) -> None:
    memory.pipe("/other/a.txt", b"")
    for url in ("memory://gone", "memory://gone.jpg", "memory://other/a.txt", "memory://other"):
        with pytest.raises(SourceError):
            rows(url)


def test_a_store_that_fails_is_no_silence(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe({"/p/a.jpg": b"a", "/p/b/c.jpg": b"c"})
    ls = memory.ls

    def failing(path: str, **kwargs: Any) -> Any:
        if path.endswith("/b"):
            raise RuntimeError("throttled at https://store/?signature=1")
        return ls(path, **kwargs)

    monkeypatch.setattr(memory, "ls", failing)
    found = rows("memory://p")
    assert found[1].columns["image_path"] == "b"
    assert isinstance(found[1].error, BrokenContainer)
    assert "signature" not in found[1].error.message
    with pytest.raises(SourceError, match="cannot be listed"):
        rows("memory://p/b")


def test_captions_of_a_store_are_fetched_side_by_side_in_order(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 3 * folder.CAPTION_THREADS
    for i in range(count):
        memory.pipe({f"/p/{i:03}.jpg": b"", f"/p/{i:03}.txt": f"caption {i}".encode()})
    memory.pipe("/p/001.txt", b"\xff")
    opened = memory.open
    together = threading.Barrier(folder.CAPTION_THREADS)

    def meeting(path: str, *args: Any, **kwargs: Any) -> Any:
        together.wait(timeout=20)  # none returns before so many are under way
        if path.endswith("002.txt"):
            raise RuntimeError("a client's own")
        return opened(path, *args, **kwargs)

    asked = pieces("memory://p")
    monkeypatch.setattr(memory, "open", meeting)
    found = list(folder.read(*asked, SETTINGS))
    assert [row.text for row in found] == ["caption 0", None, None, *(f"caption {i}" for i in range(3, count))]
    assert [isinstance(why(row), ClipError) for row in found[:4]] == [False, True, True, False]


def test_reading_that_is_given_up_leaves_no_thread(memory: Any) -> None:
    for i in range(200):
        memory.pipe({f"/p/{i:03}.jpg": b"", f"/p/{i:03}.txt": b"x"})
    reading = folder.read(*pieces("memory://p"), SETTINGS)
    next(reading)
    reading.close()
    for thread in threading.enumerate():
        if thread.name.startswith("captions"):
            thread.join(5)
            assert not thread.is_alive()
