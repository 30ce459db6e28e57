"""Lines as sources: texts, one a line, and pictures that tables name."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import orjson
import pytest

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.sources.formats import csv as csv_format
from clip_queue.sources.formats import lines, text
from clip_queue.sources.source import BrokenContainer, Format, Row, Source, SourceError
from tests.unit.sources.tables import MODULES, errors, planned, refusal, rows

# Texts


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_a_line_a_text_across_files(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo \r\nthr\xc3\xa9\xe2\x80\xa8e\x85\xc2\x85\n")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_bytes(b"four\n  five")
    found = rows(tmp_path, Format.TEXT, size)
    assert [row.text for row in found] == ["one", "two ", None, "four", "  five"]
    assert errors(found) == {2: "Line 3 is not UTF-8 (from its byte 10 on)."}
    assert [row.columns["image_path"] for row in found] == ["a.txt#0", "a.txt#1", "a.txt#2", "c.txt#0", "c.txt#1"]
    assert found[0].columns == {"image_path": "a.txt#0", "caption": "one"}


def test_blank_and_broken_lines_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\n \t\r\nfo\xffur\nfive\n\n")
    found = rows(tmp_path / "a.txt", Format.TEXT)
    assert [row.text for row in found] == ["one", None, None, None, "five", None]
    assert errors(found) == {
        1: "Line 2 is empty.",
        2: "Line 3 is empty.",
        3: "Line 4 is not UTF-8 (from its byte 3 on).",
        5: "Line 6 is empty.",
    }
    assert all(isinstance(row.error, BadInput) for row in found if row.error)


def test_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LIMIT", 10)
    monkeypatch.setattr(lines, "BLOCK", 16)
    (tmp_path / "a.txt").write_bytes(
        b"short\n" + b"x" * 9 + b"\n" + b"y" * 10 + b"\n" + b"z" * 70 + b"\nend\n" + b"e" * 11
    )
    found = rows(tmp_path, Format.TEXT, 2)
    assert [row.text for row in found] == ["short", "x" * 9, None, None, "end", None]
    assert set(errors(found).values()) == {"The line is longer than 10 bytes."}


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    for name, head, says in [
        ("gzip.txt", b"\x1f\x8b\x08", "compressed"),
        ("utf16.txt", "hällo".encode("utf-16"), "UTF-16"),
        ("zip.txt", b"PK\3\4", "unpack"),
    ]:
        (tmp_path / name).write_bytes(head + b"\n")
        assert says in refusal(tmp_path / name, Format.TEXT)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_bytes(b"a")
    (tmp_path / "sub" / "b.txt.gz").write_bytes(b"a")
    assert refusal(tmp_path / "sub", Format.TEXT).startswith(f"{tmp_path}/sub/b.txt.gz is compressed")
    assert len(rows(tmp_path / "sub" / "*.txt", Format.TEXT)) == 1
    assert "no images" in refusal(tmp_path / "sub", Format.TEXT, images=True)
    with pytest.raises(BadInput):
        text.find(Source(str(tmp_path), Format.TEXT), "a.txt#0")


def test_a_file_that_changes_or_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nthree\n")
    (tmp_path / "b.txt").write_bytes(b"four\n")
    source, shards = planned(tmp_path, Format.TEXT, 10)
    path.write_bytes(b"one\ntwo\nthree\nmore\n")
    with pytest.raises(SourceError, match=r"a\.txt has changed since it was planned"):
        list(text.read(source, shards[0].pieces))
    for same_size in (b"one\ntwo-three\n", b"one\ntwo\nth\ne\n\n"):
        path.write_bytes(same_size)
        with pytest.raises(SourceError, match="changed"):
            list(text.read(source, shards[0].pieces))
    path.unlink()
    found = list(text.read(source, shards[0].pieces))
    assert [row.text for row in found] == [None, None, None, "four"]
    assert all(isinstance(row.error, BrokenContainer) for row in found[:3])
    assert errors(found)[2] == "a.txt cannot be read (No such file or directory): 3 rows are lost"


def test_shards_begin_where_the_rows_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK", 7)
    texts = [f"text {n} " + "x" * (n % 11) for n in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(texts[:90]) + "\n")
    (tmp_path / "b.txt").write_text("\n".join(texts[90:]))
    for size in (1, 7, 90, 199, 200, 201):
        assert [row.text for row in rows(tmp_path, Format.TEXT, size)] == texts


@pytest.mark.parametrize("format", MODULES)
def test_a_store(format: Format) -> None:
    data = {
        Format.TEXT: b"\xef\xbb\xbfone\ntwo",
        Format.CSV: b"caption\none\ntwo",
        Format.JSONL: b'{"caption":"one"}\n{"caption":"two"}',
    }[format]
    store = fsspec.filesystem("memory")
    suffix = MODULES[format].SUFFIXES[0]
    for name in ("b", "a"):
        store.pipe_file(f"/lines/{name}{suffix}", data)
    try:
        found = rows("memory://lines", format)
        assert [row.text for row in found] == ["one", "two", "one", "two"]
        assert found[3].columns["image_path"] == f"b{suffix}#1"
        source, shards = planned("memory://lines", format)
        store.rm_file(f"/lines/a{suffix}")
        assert len(errors(list(MODULES[format].read(source, shards[0].pieces)))) == 2
    finally:
        store.rm("/lines", recursive=True)


# Pictures


@pytest.mark.parametrize("format", [Format.CSV, Format.JSONL])
def test_pictures_are_found_beside_their_table(tmp_path: Path, format: Format) -> None:
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.write_bytes(b"elsewhere")
    for folder, picture in (("x", b"in x"), ("y/deep", b"in y")):
        (tmp_path / folder / "pics").mkdir(parents=True)
        (tmp_path / folder / "pics" / f"{folder[0]} ü.jpg").write_bytes(picture)
        paths = [f"pics/{folder[0]} ü.jpg", "gone.jpg", str(elsewhere), f"file://{elsewhere}", "no\0path"]
        paths = paths[: 4 if format == Format.CSV else 5]
        table = tmp_path / folder / f"t{MODULES[format].SUFFIXES[0]}"
        if format == Format.CSV:
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
    assert MODULES[format].find(source, "pics/x ü.jpg") == b"in x"
    assert MODULES[format].find(source, "pics/y ü.jpg") == b"in y"
    assert MODULES[format].find(source, str(elsewhere)) == b"elsewhere"
    with pytest.raises(OSError):
        MODULES[format].find(source, "gone.jpg")


def load(row: Row) -> object:
    assert callable(row.image)
    try:
        return row.image()
    except (OSError, ClipError) as error:
        return type(error)


def test_pictures_in_a_store() -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/tables/sub/t.csv", b"file_name\n../pics/1.jpg\n/tables/pics/1.jpg\nmemory://tables/pics/1.jpg\n")
    store.pipe_file("/tables/pics/1.jpg", b"picture")
    try:
        found = rows("memory://tables", Format.CSV)
        assert [load(row) for row in found] == [b"picture"] * 3
        source, _ = planned("memory://tables", Format.CSV)
        assert csv_format.find(source, "../pics/1.jpg") == b"picture"
    finally:
        store.rm("/tables", recursive=True)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xffdir"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/t.csv")).write_bytes(b"path\n1.jpg\n")
    Path(os.fsdecode(folder + b"/1.jpg")).write_bytes(b"picture")
    found = rows(tmp_path, Format.CSV)
    assert [load(row) for row in found] == [b"picture"]
