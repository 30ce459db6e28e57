"""A folder as a source: which rows, in which order, and what cannot be read of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from clip_queue.sources.formats import folder, image_files
from clip_queue.sources.source import BrokenContainer, SourceError
from tests.unit.sources.folders import SETTINGS, find, loaded, paths, pieces, put, rows, source
from tests.unit.sources.tables import why

# Rows and their order


def test_images_come_by_name_before_the_folders_beside_them(tmp_path: Path) -> None:
    put(tmp_path, "b.jpg", "a/z.png", "B.jpg", "a/b/c.gif", "z.webp", "a!.jpg", "a.b/x.jpg", "0/1.bmp")
    expected = ["B.jpg", "a!.jpg", "b.jpg", "z.webp", "0/1.bmp", "a/z.png", "a/b/c.gif", "a.b/x.jpg"]
    assert paths(tmp_path) == expected
    assert [loaded(row).decode() for row in rows(tmp_path)] == expected


def test_suffixes_count_in_any_case_and_nothing_else_does(tmp_path: Path) -> None:
    ends = [
        "jpg",
        "JPG",
        "Jpeg",
        "png",
        "webp",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "avif",
        "heic",
        "mpo",
        "ppm",
        "jp2",
        "jpe",
        "jfif",
    ]
    wanted = [f"{i:02}.{end}" for i, end in enumerate(ends)]
    put(tmp_path, *wanted, "a.svg", "jpg", "a.jpg.part", "a.txt", "b.cr2", "notes", "x.json")
    assert paths(tmp_path) == wanted


def test_hidden_names_are_skipped(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", ".b.jpg", "._a.jpg", ".git/c.jpg", "d/.thumbs/e.jpg", ".jpg")
    assert paths(tmp_path) == ["a.jpg"]


def test_names_may_be_anything(tmp_path: Path) -> None:
    odd = [
        "a b.jpg", "a'b\".jpg", "a\nb.jpg", "ü.jpg", "u\u0308.jpg", "日本.jpg", "🐘.jpg", "-rf.jpg", "*.jpg", "[x].jpg",
        "{a,b}.jpg", "x" * 251 + ".jpg", "%41.jpg", "\\x41.jpg", "a\\b.jpg", "..a.jpg"[2:], "$HOME.jpg",
    ]  # fmt: skip
    put(tmp_path, *odd)
    (tmp_path / os.fsdecode(b"bad \xff\xfe name.jpg")).write_bytes(b"raw")
    (tmp_path / os.fsdecode(b"bad \xff\xfe name.txt")).write_text("a caption")
    put(tmp_path, "\\xff.jpg")
    found = {row.columns["image_path"]: row for row in rows(tmp_path)}
    assert set(found) == {*odd, "bad \\xff\\xfe name.jpg", "\\xff.jpg"}
    for name, row in found.items():
        expected = "raw" if name.startswith("bad") else name
        assert loaded(row).decode() == expected
        assert find(tmp_path, name).decode() == expected
    assert found["bad \\xff\\xfe name.jpg"].text == "a caption"
    for piece in pieces(tmp_path)[1]:
        piece.note.encode()  # it is stored as text


def test_folders_may_be_named_like_images_and_in_bytes(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg/b.jpg", "c.txt/d.jpg")
    raw = tmp_path / os.fsdecode(b"\xe9t\xe9")
    raw.mkdir()
    (raw / "x.jpg").write_bytes(b"x")
    assert paths(tmp_path) == ["a.jpg/b.jpg", "c.txt/d.jpg", "\\xe9t\\xe9/x.jpg"]
    assert find(tmp_path, "\\xe9t\\xe9/x.jpg") == b"x"
    assert paths(raw) == ["x.jpg"]


def test_deep_trees_are_walked(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(400):
            os.mkdir("d" * 9, dir_fd=here)
            there = os.open("d" * 9, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = there
        os.close(os.open("x.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    finally:
        os.close(here)
    found = rows(tmp_path)
    assert len(found) == 1
    if found[0].error is None:
        assert found[0].columns["image_path"].endswith("/x.jpg")
    else:  # past what a path may be long: said, not silent
        assert "cannot be listed" in found[0].error.message


# Links, pipes, and what cannot be listed


def test_loops_end_and_a_folder_is_read_once(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "me").symlink_to(".")
    (tmp_path / "c").symlink_to("b")
    (tmp_path / "a" / "also b").symlink_to("../b")
    (tmp_path / "self").symlink_to("self")
    assert paths(tmp_path) == ["a/1.jpg", "a/also b/2.jpg"]


def test_two_links_to_an_image_are_two_rows(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "c.jpg").hardlink_to(tmp_path / "a.jpg")
    assert [loaded(row) for row in rows(tmp_path)] == [b"a.jpg"] * 3


def test_the_source_itself_may_be_a_link_and_links_may_leave_it(tmp_path: Path) -> None:
    put(tmp_path / "real", "a.jpg")
    put(tmp_path / "elsewhere", "b.jpg")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "out").symlink_to("../elsewhere")
    assert paths(tmp_path / "link") == ["a.jpg", "out/b.jpg"]


def test_a_link_that_dangles_is_a_row_that_fails(tmp_path: Path) -> None:
    put(tmp_path, "b.jpg")
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    (tmp_path / "c.jpg").symlink_to("c.jpg")
    (tmp_path / "d").symlink_to("gone")
    found = rows(tmp_path)
    assert [row.columns["image_path"] for row in found] == ["a.jpg", "b.jpg", "c.jpg"]
    for row in (found[0], found[2]):
        with pytest.raises(OSError):
            loaded(row)


def test_pipes_and_devices_are_no_images_and_never_wait(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "y.jpg")
    os.mkfifo(tmp_path / "x.jpg")
    os.mkfifo(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "z.jpg").symlink_to("pipe")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "y.txt").symlink_to("pipe")
    found = rows(tmp_path, texts=True)
    assert [row.columns["image_path"] for row in found] == ["a.jpg", "y.jpg", "z.jpg", "zero.jpg"]
    assert found[0].text is None
    assert why(found[1]) is not None
    for row in found[2:]:
        with pytest.raises(OSError, match="not a regular file"):
            loaded(row)


def test_a_folder_that_cannot_be_listed_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    scandir = os.scandir

    def refusing(path: bytes) -> Any:
        if path.endswith(b"/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(image_files.os, "scandir", refusing)
    found = rows(tmp_path)
    assert [row.columns["image_path"] for row in found] == ["a/1.jpg", "b", "c/3.jpg"]
    error = found[1].error
    assert isinstance(error, BrokenContainer)
    assert error.message == (
        f"folder {tmp_path}/b cannot be listed: Permission denied; how many images it holds is not known"
    )
    (tmp_path / "a/1.jpg").unlink()
    (tmp_path / "c/3.jpg").unlink()
    with pytest.raises(SourceError, match=r"holds no image.*; 1 of its folders cannot be listed"):
        rows(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_without_permission_is_one(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b/2.jpg")
    (tmp_path / "b").chmod(0)
    try:
        assert isinstance(rows(tmp_path)[1].error, BrokenContainer)
    finally:
        (tmp_path / "b").chmod(0o700)


def test_a_folder_that_vanished_is_one_too(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", *(f"b/{i}.jpg" for i in range(3)))
    _, shards = folder.plan_shards(source(tmp_path, texts=False), 1, SETTINGS)
    (tmp_path / "b").rename(tmp_path / ".b")
    found = [row for shard in shards for row in folder.read(source(tmp_path, images=True), shard.pieces, SETTINGS)]
    assert [row.columns["image_path"] for row in found] == ["a.jpg", "b"]
    assert why(found[1]) is not None
    assert "No such file or directory" in found[1].error.message


def test_an_image_that_vanished_is_its_row_s_failure(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    done, planned = pieces(tmp_path)
    (tmp_path / "a.jpg").unlink()
    first, second = folder.read(done, planned, SETTINGS)
    with pytest.raises(FileNotFoundError):
        loaded(first)
    assert loaded(second) == b"b.jpg"
