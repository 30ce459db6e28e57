"""What has changed in a source since it was planned."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.changes import changes
from clip_queue.sources.source import Piece, Source, SourceError


def plan(folder: Path, format: str) -> tuple[Source, list[Piece]]:
    source, shards = registry.plan_shards(Source(str(folder), format), 2, Settings())
    return source, [piece for shard in shards for piece in shard.pieces]


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_a_folder_of_images(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b/c.png", "b/d.png", "b.png", "e/f/g.png", "z.png")
    source, pieces = plan(tmp_path, "folder")
    now = time.time() + 1
    assert str(changes(source, pieces, now)) == ""
    images(tmp_path, "0.png", "b/e.png", "e/a.png", "zz/1.png")
    assert str(changes(source, pieces, now)) == "4 files are new (0.png, b/e.png, e/a.png, …)"
    (tmp_path / "a.png").unlink()
    (tmp_path / "z.txt").write_text("a caption")
    found = changes(source, pieces, now)
    assert (found.new, found.changed, found.gone) == (4, 1, 1)
    assert str(found).endswith("1 has changed (z.png), 1 is gone (a.png)")


def test_a_file_that_was_written_later_has_changed(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    source, pieces = plan(tmp_path, "folder")
    planned = time.time()
    os.utime(tmp_path / "a.png", (planned - 10, planned - 10))
    os.utime(tmp_path / "b.png", (planned + 10, planned + 10))
    assert str(changes(source, pieces, planned)) == "1 file has changed (b.png)"
    assert str(changes(source, pieces, 0)) == "", "an older release did not note when it planned"


def test_tables(tmp_path: Path) -> None:
    for name in ("a.csv", "b/c.csv", "d.csv"):
        images(tmp_path, name)
        (tmp_path / name).write_text("caption\nbanana\npizza\nrocket\n")
    source, pieces = plan(tmp_path, "csv")
    later = time.time() + 1
    assert str(changes(source, pieces, later)) == ""
    with (tmp_path / "a.csv").open("a") as file:
        file.write("rocket\n")
    (tmp_path / "b" / "c.csv").unlink()
    (tmp_path / "e.csv").write_text("caption\na\n")
    found = "1 file is new (e.csv), 1 has changed (a.csv), 1 is gone (b/c.csv)"
    assert str(changes(source, pieces, later)) == found


def test_a_source_that_is_gone_is_an_error(tmp_path: Path) -> None:
    images(tmp_path / "here", "a.png")
    source, pieces = plan(tmp_path / "here", "folder")
    (tmp_path / "here" / "a.png").unlink()
    (tmp_path / "here").rmdir()
    with pytest.raises(SourceError, match="there is no folder of that name"):
        changes(source, pieces, 0)


def test_images_that_a_pattern_names(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b/c.png", "b/z.png", "b.png", "d/e/f.png")
    (tmp_path / "b" / "z.txt").write_text("a caption")
    source, pieces = plan(tmp_path / "{a.png,b,d}", "folder")
    assert [os.path.relpath(piece.path, os.fsencode(tmp_path)) for piece in pieces] == [
        b"a.png",
        b"b/c.png",
        b"b/z.png",
        b"d/e/f.png",
    ]
    assert source.texts
    now = time.time() + 1
    assert str(changes(source, pieces, now)) == ""
    images(tmp_path, "new.png", "b/d.png")
    assert str(changes(source, pieces, now)) == "1 file is new (b/d.png)"
    rows = list(registry.read(source, pieces, Settings()))
    assert [row.text for row in rows] == [None, None, "a caption", None]
    assert registry.find_image(source, "d/e/f.png", Settings()) == b"x"
