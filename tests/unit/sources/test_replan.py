"""A plan taken over for a source that has changed: which shards stay, which are done again, what is new."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.changes import Located
from clip_queue.sources.formats.folder import UNREADABLE
from clip_queue.sources.replan import Replan, rows_of
from clip_queue.sources.source import Piece, Shard, Source, SourceError

SIZE = 3


class Plan:
    """A plan of a folder, made an hour ago of files that are older."""

    def __init__(self, folder: Path, format: str) -> None:
        self.folder = folder
        past = time.time() - 7200
        for path in folder.rglob("*"):
            os.utime(path, (past, past))
        self.source, shards = registry.plan_shards(Source(str(folder), format), SIZE, Settings())
        self.shards = list(shards)
        self.since = time.time() - 3600
        self.counted = all(shard.rows is not None for shard in self.shards)

    def located(self) -> Iterator[Located]:
        for number, shard in enumerate(self.shards):
            for at, piece in enumerate(shard.pieces):
                yield Located(piece, number, at)

    def again(self) -> tuple[dict[int, list[str]], list[list[str]], Replan]:
        """The shards that are done again, and the new ones: the names of their pieces, with their rows if several."""
        replan = Replan(self.source, self.located(), self.since, SIZE, Settings(), counted=self.counted)
        new = list(replan.new_shards())
        old = list(replan.old_shards(self.shards))
        assert len(old) == len(self.shards)
        self.old = old
        done = {n: self.names(each.shard) for n, each in enumerate(old) if each.again}
        return done, [self.names(shard) for shard in new], replan

    def names(self, shard: Shard) -> list[str]:
        if self.counted:
            assert shard.rows == sum(map(rows_of, shard.pieces))
        names = []
        for piece in shard.pieces:
            name = os.fsdecode(piece.path).removeprefix(f"{self.folder}/")
            rows = rows_of(piece)
            names.append(name if piece.start < 0 else f"{name}:{rows}")
        return names


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_images_that_are_new_gone_and_changed(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "c.png", "d/e.png", "d/f.png", "g/h.png", "g/i.png")
    plan = Plan(tmp_path, "folder")
    assert plan.again()[:2] == ({}, [])
    images(tmp_path, "aa.png", "d/0.png", "z/1.png", "z/2.png")
    assert plan.again()[:2] == ({}, [["aa.png", "d/0.png", "z/1.png"], ["z/2.png"]])
    (tmp_path / "d" / "f.png").unlink()
    images(tmp_path, "b.png")
    done, new, replan = plan.again()
    assert done == {0: ["a.png", "b.png", "c.png"], 1: ["d/e.png", "g/h.png"]}
    assert (
        str(replan.changes)
        == "4 files are new (aa.png, d/0.png, z/1.png, …), 1 has changed (b.png), 1 is gone (d/f.png)"
    )
    assert len(new) == 2


def test_an_image_that_was_replaced_by_an_older_file_of_another_size(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    plan = Plan(tmp_path, "folder")
    (tmp_path / "a.png").write_bytes(b"larger")
    os.utime(tmp_path / "a.png", (1e9, 1e9))
    assert plan.again()[:2] == ({0: ["a.png", "b.png"]}, [])


def test_a_caption_that_was_written_later(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("an apple")
    plan = Plan(tmp_path, "folder")
    (tmp_path / "a.txt").write_text("a pear")
    done, _, replan = plan.again()
    assert (list(done), str(replan.changes)) == ([0], "1 file has changed (a.png)")


def test_a_folder_that_cannot_be_listed_takes_nothing_out_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path, "a.png", "d/e.png", "d/f.png", "g.png")
    plan = Plan(tmp_path, "folder")
    real, barred = os.scandir, os.fsencode(tmp_path / "d")

    def scandir(path: bytes) -> object:
        if path == barred:
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        with pytest.raises(SourceError, match=r"d cannot be listed: .*Nothing of it would be left in the output"):
            plan.again()
        then = Plan(tmp_path, "folder")
        assert [piece.note.startswith(UNREADABLE) for piece in then.shards[0].pieces] == [False, False, True]
        assert then.again()[:2] == ({}, []), "it could not be listed before either"
    assert then.again()[:2] == ({0: ["a.png", "g.png"]}, [["d/e.png", "d/f.png"]])


def tar(path: Path, *names: str) -> None:
    with tarfile.open(path, "w") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            file.addfile(member, io.BytesIO(b"x"))


def test_tars_are_shards_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "c", "d"):
        tar(tmp_path / f"{name}.tar", "1.png")
    plan = Plan(tmp_path, "webdataset")
    tar(tmp_path / "b.tar", "1.png")
    tar(tmp_path / "c.tar", "1.png", "2.png")
    (tmp_path / "d.tar").unlink()
    assert plan.again()[:2] == ({1: ["c.tar"], 2: []}, [["b.tar"]])


def table(path: Path, *captions: str) -> None:
    pq.write_table(pa.table({"caption": list(captions), "n": list(range(len(captions)))}), path)


def test_rows_of_parquet_keep_their_shards(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", *"abcd")
    table(tmp_path / "b.parquet", *"efgh")
    plan = Plan(tmp_path, "parquet")
    table(tmp_path / "a.parquet", *"abcdxyz")
    done, new, _ = plan.again()
    assert done == {0: ["a.parquet:3"], 1: ["a.parquet:1", "b.parquet:2"]}
    assert [each.same_rows for each in plan.old] == [True, True, False]
    assert new == [["a.parquet:3"]]
    table(tmp_path / "a.parquet", *"ab")
    done, new, _ = plan.again()
    assert (done, new) == ({0: ["a.parquet:2"], 1: ["b.parquet:2"]}, [])
    assert not any(each.same_rows for each in plan.old)


def test_a_table_that_could_not_be_read_is_looked_at_again(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", *"abcd")
    good = (tmp_path / "a.parquet").read_bytes()
    table(tmp_path / "b.parquet", *"ef")
    (tmp_path / "a.parquet").write_bytes(b"x" * len(good))
    plan = Plan(tmp_path, "parquet")
    assert plan.again()[:2] == ({}, [])
    (tmp_path / "a.parquet").write_bytes(good)
    os.utime(tmp_path / "a.parquet", (1e9, 1e9))
    assert plan.again()[:2] == ({0: ["a.parquet:1", "b.parquet:2"]}, [["a.parquet:3"]])


def test_a_column_of_another_type_is_refused_and_a_new_one_left_out(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", *"ab")
    plan = Plan(tmp_path, "parquet")
    pq.write_table(pa.table({"caption": ["c"], "n": [1], "m": [2]}), tmp_path / "b.parquet")
    assert plan.again()[2].source.columns == plan.source.columns
    pq.write_table(pa.table({"caption": ["c"], "n": [1.5]}), tmp_path / "c.parquet")
    with pytest.raises(SourceError, match="column 'n' is double now, and int64 in the output: choose another output"):
        plan.again()


def test_csv_with_quoted_lines_and_a_file_with_another_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('caption\na\n"b\nb"\nc\nd\n')
    plan = Plan(tmp_path, "csv")
    (tmp_path / "a.csv").write_text('caption\na\n"b\nb"\nc\nd\ne\n')
    (tmp_path / "b.csv").write_text("caption,more\nf,1\n")
    done, new, replan = plan.again()
    assert done == {0: ["a.csv:3"], 1: ["a.csv:1"]}
    assert new == [["a.csv:1", "b.csv:1"]]
    rows = registry.read(replan.source, [piece for each in plan.old for piece in each.shard.pieces], Settings())
    assert [row.text for row in rows] == ["a", "b\nb", "c", "d"]
    new_rows = registry.read(replan.source, _new(plan), Settings())
    assert [row.text for row in new_rows] == ["e", "f"]


def _new(plan: Plan) -> list[Piece]:
    again = Replan(plan.source, plan.located(), plan.since, SIZE, Settings(), counted=True)
    return [piece for shard in again.new_shards() for piece in shard.pieces]


def test_what_options_said_of_reading_stays_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("caption;n\nnaïve;1\n".encode("cp1252"))
    asked = Source(str(tmp_path), "csv", storage={"delimiter": ";", "encoding": "cp1252"})
    source, shards = registry.plan_shards(asked, SIZE, Settings())
    pieces = [Located(piece, 0, at) for at, piece in enumerate(next(shards).pieces)]
    (tmp_path / "b.csv").write_bytes("caption;n\ncafé;1\n".encode("cp1252"))
    replan = Replan(source, pieces, 0, SIZE, Settings(), counted=True)
    (shard,) = replan.new_shards()
    assert [row.text for row in registry.read(replan.source, shard.pieces, Settings())] == ["café"]
    assert replace(replan.source, storage={}) == replace(source, storage={})
