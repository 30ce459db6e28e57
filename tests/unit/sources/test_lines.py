"""Files of lines as sources: texts, and images that tables name."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import fsspec
import orjson
import pytest

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.sources import registry
from clip_queue.sources.formats import lines, text
from clip_queue.sources.formats.table import Table
from clip_queue.sources.source import BrokenContainer, Row, Source, SourceError
from tests.unit.sources.tables import FORMATS, SETTINGS, errors, find, planned, read_all, refusal, rows

# Texts


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_a_line_a_text_across_files(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo \r\nthr\xc3\xa9\xe2\x80\xa8e\x85\xc2\x85\n")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_bytes(b"four\n  five")
    found = rows(tmp_path, "text", size)
    assert [row.text for row in found] == ["one", "two ", None, "four", "  five"]
    assert errors(found) == {2: "Line 3 is not UTF-8 (from its byte 10 on)."}
    assert [row.columns["image_path"] for row in found] == ["a.txt#0", "a.txt#1", "a.txt#2", "c.txt#0", "c.txt#1"]
    assert found[0].columns == {"image_path": "a.txt#0", "caption": "one"}


def test_blank_and_broken_lines_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\n \t\r\nfo\xffur\nfive\n\n")
    found = rows(tmp_path / "a.txt", "text")
    assert [row.text for row in found] == ["one", None, None, None, "five", None]
    assert errors(found) == {
        1: "Line 2 is empty.",
        2: "Line 3 is empty.",
        3: "Line 4 is not UTF-8 (from its byte 3 on).",
        5: "Line 6 is empty.",
    }
    assert all(isinstance(row.error, BadInput) for row in found if row.error)


def parse(table: Table, number: int, line: bytes) -> list[Row]:
    return [table.row(number, {}, None, text.decoded(Source("", "text"), line, number))]


def test_a_line_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(
        b"short\n" + b"x" * 9 + b"\n" + b"y" * 10 + b"\n" + b"z" * 70 + b"\nend\n" + b"e" * 11
    )
    source, shards = planned(tmp_path, "text", 2)
    splitter = partial(lines.lines, limit=10, block=16)
    found = [row for shard in shards for row in lines.read(source, shard.pieces, SETTINGS, splitter, parse)]
    assert [row.text for row in found] == ["short", "x" * 9, None, None, "end", None]
    assert set(errors(found).values()) == {"The line is longer than 10 bytes."}


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    for name, head, says in [
        ("gzip.txt", b"\x1f\x8b\x08", "unpacked"),
        ("utf16.txt", "hällo".encode("utf-16"), "UTF-16"),
        ("zip.txt", b"PK\3\4", "unpack"),
    ]:
        (tmp_path / name).write_bytes(head + b"\n")
        assert says in refusal(tmp_path / name, "text")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_bytes(b"a")
    (tmp_path / "sub" / "b.txt.br").write_bytes(b"a")
    assert refusal(tmp_path / "sub", "text").startswith(f"{tmp_path}/sub/b.txt.br is compressed")
    assert len(rows(tmp_path / "sub" / "*.txt", "text")) == 1
    assert "no images" in refusal(tmp_path / "sub", "text", images=True)
    with pytest.raises(BadInput):
        find(Source(str(tmp_path), "text"), "a.txt#0")


def test_a_file_that_changes_or_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nthree\n")
    (tmp_path / "b.txt").write_bytes(b"four\n")
    source, shards = planned(tmp_path, "text", 10)
    path.write_bytes(b"one\ntwo\nthree\nmore\n")
    with pytest.raises(SourceError, match=r"a\.txt has changed since it was planned"):
        list(text.read(source, shards[0].pieces, SETTINGS))
    for same_size in (b"one\ntwo-three\n", b"one\ntwo\nth\ne\n\n"):
        path.write_bytes(same_size)
        with pytest.raises(SourceError, match="changed"):
            list(text.read(source, shards[0].pieces, SETTINGS))
    path.unlink()
    found = list(text.read(source, shards[0].pieces, SETTINGS))
    assert [row.text for row in found] == [None, None, None, "four"]
    assert all(isinstance(row.error, BrokenContainer) for row in found[:3])
    assert errors(found)[2] == "a.txt cannot be read (No such file or directory): 3 rows are lost"


def test_shards_begin_where_the_rows_do(tmp_path: Path) -> None:
    texts = [f"text {n} " + "x" * (n % 11) for n in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(texts[:90]) + "\n")
    (tmp_path / "b.txt").write_text("\n".join(texts[90:]))
    source, _ = planned(tmp_path, "text")
    files = lines.files(source.url, registry.FORMATS["text"])
    for size in (1, 7, 90, 199, 200, 201):
        shards = list(lines.shards(source, files, size, partial(lines.line_marks, block=7)))
        assert [row.text for row in read_all(source, shards, size)] == texts


@pytest.mark.parametrize("format", FORMATS)
def test_a_store(format: str) -> None:
    data = {
        "text": b"\xef\xbb\xbfone\ntwo",
        "csv": b"caption\none\ntwo",
        "jsonl": b'{"caption":"one"}\n{"caption":"two"}',
    }[format]
    store = fsspec.filesystem("memory")
    suffix = registry.FORMATS[format].suffixes[0]
    for name in ("b", "a"):
        store.pipe_file(f"/lines/{name}{suffix}", data)
    try:
        found = rows("memory://lines", format)
        assert [row.text for row in found] == ["one", "two", "one", "two"]
        assert found[3].columns["image_path"] == f"b{suffix}#1"
        source, shards = planned("memory://lines", format)
        store.rm_file(f"/lines/a{suffix}")
        assert len(errors(list(registry.read(source, shards[0].pieces, SETTINGS)))) == 2
    finally:
        store.rm("/lines", recursive=True)


# Images


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_images_are_found_beside_their_table(tmp_path: Path, format: str) -> None:
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.write_bytes(b"elsewhere")
    for folder, image in (("x", b"in x"), ("y/deep", b"in y")):
        (tmp_path / folder / "pics").mkdir(parents=True)
        (tmp_path / folder / "pics" / f"{folder[0]} ü.jpg").write_bytes(image)
        paths = [f"pics/{folder[0]} ü.jpg", "gone.jpg", str(elsewhere), f"file://{elsewhere}", "no\0path"]
        paths = paths[: 4 if format == "csv" else 5]
        table = tmp_path / folder / f"t{registry.FORMATS[format].suffixes[0]}"
        if format == "csv":
            table.write_text("\n".join(["file_name", *paths]))
        else:
            table.write_bytes(b"\n".join(orjson.dumps({"file_name": path}) for path in paths))
    found = rows(tmp_path, format)
    count = len(found) // 2
    assert [load(row) for row in found[:4]] == [b"in x", FileNotFoundError, b"elsewhere", b"elsewhere"]
    assert load(found[count]) == b"in y"
    assert all(load(row) is not None for row in found)
    assert found[0].columns["image_path"] == found[0].columns["file_name"] == "pics/x ü.jpg"
    source, _ = planned(tmp_path, format)
    assert find(source, "pics/x ü.jpg") == b"in x"
    assert find(source, "pics/y ü.jpg") == b"in y"
    assert find(source, str(elsewhere)) == b"elsewhere"
    with pytest.raises(OSError):
        find(source, "gone.jpg")


def load(row: Row) -> object:
    assert callable(row.image)
    try:
        return row.image()
    except (OSError, ClipError) as error:
        return type(error)


def test_images_in_a_store() -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/tables/sub/t.csv", b"file_name\n../pics/1.jpg\n/tables/pics/1.jpg\nmemory://tables/pics/1.jpg\n")
    store.pipe_file("/tables/pics/1.jpg", b"image")
    try:
        found = rows("memory://tables", "csv")
        assert [load(row) for row in found] == [b"image"] * 3
        source, _ = planned("memory://tables", "csv")
        assert find(source, "../pics/1.jpg") == b"image"
    finally:
        store.rm("/tables", recursive=True)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xffdir"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/t.csv")).write_bytes(b"path\n1.jpg\n")
    Path(os.fsdecode(folder + b"/1.jpg")).write_bytes(b"image")
    found = rows(tmp_path, "csv")
    assert [load(row) for row in found] == [b"image"]
