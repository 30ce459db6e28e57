"""Texts, CSV and JSON Lines: rows and their numbers, shards across files, and what is broken in them."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import fsspec
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bulk.formats import csv as csv_format
from bulk.formats import jsonl, lines, text
from bulk.source import BrokenContainer, Format, Row, Source, SourceError
from shared.errors import BadInput, ClipError

MODULES: dict[Format, Any] = {Format.TEXT: text, Format.CSV: csv_format, Format.JSONL: jsonl}


def planned(url: object, format: Format, size: int = 3, **asked: Any) -> tuple[Source, list[Any]]:
    source, shards = MODULES[format].plan(Source(str(url), format, **asked), size)
    source = Source.from_json(orjson.loads(orjson.dumps(source.to_json())))  # as a worker gets it
    return source, list(shards)


def rows(url: object, format: Format, size: int = 3, **asked: Any) -> list[Row]:
    """All rows, with the plan checked against them."""
    source, shards = planned(url, format, size, **asked)
    found = []
    for n, shard in enumerate(shards):
        part = list(MODULES[format].read(source, shard.pieces))
        assert len(part) == shard.rows
        assert shard.rows == size or n == len(shards) - 1
        found += part
    return found


def refusal(url: object, format: Format, **asked: Any) -> str:
    with pytest.raises(SourceError) as caught:
        planned(url, format, **asked)
    return caught.value.message


def errors(found: list[Row]) -> dict[int, str]:
    return {n: row.error.message for n, row in enumerate(found) if row.error}


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


# CSV


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b"\xef\xbb\xbfcaption,url,,error\r\n"
        b'"a, ""quoted""\r\ntext over\nlines",http://x/1,1,e\r\n'
        b"plain,http://x/2,,\r\n"
        b"too,few\r\n"
        b"one,too,many,fields,here\r\n"
        b"\r\n"
        b"not utf-8 \xff,,,\r\n"
        b',http://x/3,2,"last"'
    )
    for size in (1, 2, 100):
        found = rows(tmp_path, Format.CSV, size, images=False)
        assert [row.text for row in found] == ['a, "quoted"\r\ntext over\nlines', "plain", *[None] * 5]
        assert errors(found) == {
            2: "Row 3 has 2 fields, the header 4.",
            3: "Row 4 has 5 fields, the header 4.",
            4: "Row 5 is empty.",
            5: "Row 6 is not UTF-8 (from its byte 11 on).",
            6: "The row has no text.",
        }
        own = {"url": "http://x/1", "column_3": "1", "source_error": "e"}
        assert found[0].columns == {"image_path": "a.csv#0", "caption": found[0].text, **own}
    source, _ = planned(tmp_path, Format.CSV)
    assert (source.image_column, source.text_column) == ("url", "caption")
    assert source.columns == {"url": "string", "column_3": "string", "source_error": "string"}
    found = rows(tmp_path, Format.CSV)
    assert found[6].error is None  # it has its picture
    assert found[6].text is None
    assert callable(found[6].image)
    assert found[6].columns["image_path"] == "http://x/3"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_headers(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.tsv"
    with path.open("w", newline="") as file:
        out = csv.writer(file, delimiter=delimiter)
        out.writerows([["text", "b"], ["x,y;z\tw|v", 'a "b"']])
    found = rows(path, Format.CSV)
    assert found[0].columns == {"image_path": "a.tsv#0", "caption": "x,y;z\tw|v", "b": 'a "b"'}


def test_a_csv_of_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"one, two"\nthree\n')
    assert [row.text for row in rows(tmp_path, Format.CSV)] == ["one, two", "three"]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_quote_that_is_never_closed_costs_its_line(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.csv").write_text('text,b\n5" disk,1\n"two,2\nthree,3\nfour,4\nfive,5\n')
    found = rows(tmp_path, Format.CSV, size)
    assert errors(found) == {1: "A quote in it is never closed."}
    assert [row.text for row in found] == ['5" disk', None, "three", "four", "five"]


def test_a_row_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LIMIT", 30)
    far = "".join(f"line {n}\n" for n in range(10))
    (tmp_path / "a.csv").write_text(f'text\n"{far}"\n{"x" * 99}\n"{"y" * 99}"\nend\n')
    found = rows(tmp_path, Format.CSV, 4)
    # The quote that closes the first is one that opens, to the row's end.
    texts = [None, *[f"line {n}" for n in range(1, 10)], None, None, None, "end"]
    assert [row.text for row in found] == texts


def test_csv_files_have_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,b\none,1\n")
    (tmp_path / "b.csv").write_text("")
    (tmp_path / "c.csv").write_text("text,b\n")
    assert len(rows(tmp_path, Format.CSV)) == 1
    (tmp_path / "d.csv").write_text("text,c\ntwo,2\n")
    assert "d.csv has the columns text, c; the first file has text, b" in refusal(tmp_path, Format.CSV)
    assert "same name: text" in refusal_of(tmp_path / "e.csv", "text,text\n")
    assert "no header" in refusal_of(tmp_path / "f.csv", "")
    assert "no header" in refusal_of(tmp_path / "g.csv", "\n\n")


def refusal_of(path: Path, data: str) -> str:
    path.write_text(data)
    return refusal(path, Format.CSV)


FIELD = st.text(alphabet='ab",;\n\r é', max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(FIELD, min_size=1, max_size=4), max_size=6))
def test_rows_written_by_csv_are_split_as_csv_reads_them(table: list[list[str]]) -> None:
    written = io.StringIO(newline="")
    csv.writer(written).writerows(table)
    assert_as_csv(written.getvalue())


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet='a",\n', max_size=30))
@example('"a"b",c\n"d\n"')
@example('a,"b""\n"",c"\n')
def test_whatever_is_closed_is_split_as_csv_reads_it(data: str) -> None:
    try:
        list(csv.reader(data.splitlines(keepends=True), strict=True))
        assert_as_csv(data)
    except csv.Error as error:
        if "unexpected end of data" not in str(error):  # which is ours to decide
            wanted = list(csv.reader(data.splitlines(keepends=True)))
            found = list(split(data))
            if not any(isinstance(each, BadInput) for each in found):
                assert [csv_format._fields(each.decode(), ",") for each in found] == wanted  # type: ignore[union-attr]


def split(data: str) -> list[bytes | BadInput]:
    raw = data.encode()
    parts = list(csv_format._Splitter(",")(io.BytesIO(raw), 0, len(raw)))
    ends = [0, *(end for end, _ in parts)]
    assert ends[-1] == len(raw)
    for (_, row), start, end in zip(parts, ends[:-1], ends[1:], strict=True):
        assert isinstance(row, BadInput) or raw[start:end] == row
    return [row for _, row in parts]


def assert_as_csv(data: str) -> None:
    physical = io.StringIO(data, newline="\n")  # lines end at \n alone
    try:
        wanted = list(csv.reader(physical))
    except csv.Error:
        return
    assert [csv_format._fields(each.decode(), ",") for each in split(data)] == wanted  # type: ignore[union-attr]


# JSON Lines


def test_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = [
        b'{"caption": "one", "url": "u/1.jpg", "n": 1, "x": 1, "deep": {"a": [1]}, "ok": true, "extra": "e"}',
        b'{"caption": "two", "url": "u/2.jpg", "n": 2, "x": 1.5, "deep": null}',
        b'{"caption": null, "url": "u/3.jpg", "n": "three", "late": 1}',
        b'{"caption": "broken", ',
        b"[1, 2]",
        b"",
        b'{"caption": "\xff"}',
        b'{"caption": 5, "url": "u/4.jpg"}',
        b'{"caption": "five", "url": 7}',
        b'{"caption": "six"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(written))
    monkeypatch.setattr(jsonl, "LOOK", 2)
    source, _ = planned(tmp_path, Format.JSONL)
    found = rows(tmp_path, Format.JSONL, 4)
    assert source.columns == {
        "url": "string",
        "n": "int64",
        "x": "double",
        "deep": "string",
        "ok": "bool",
        "source_extra": "string",
        "extra": "string",
    }
    none = dict.fromkeys(source.columns)
    own = {"url": "u/1.jpg", "n": 1, "x": 1.0, "deep": '{"a":[1]}', "ok": True, "source_extra": "e", "extra": None}
    assert found[0].columns == {"image_path": "u/1.jpg", "caption": "one", **own}
    assert found[2].columns == {
        "image_path": "u/3.jpg",
        "caption": None,
        **none,
        "url": "u/3.jpg",
        "extra": '{"n":"three","late":1}',
    }
    assert found[2].error is None
    said = errors(found)
    assert said[3].startswith("Line 4 is not JSON:")
    assert said[4] == "Line 5 is JSON, but no object."
    assert said[5] == "Line 6 is empty."
    assert said[6].startswith("Line 7 is not UTF-8")
    assert said[7] == "The row's text is a int, no text."
    assert said[8].endswith("The row's image is a int, no path and no URL.")
    assert said[9].endswith("The row has no image.")
    assert found[7].columns["image_path"] == "u/4.jpg"
    assert len(said) == 7


def test_jsonl_columns_are_chosen_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "x", "image_path": "1.jpg", "n": 1}\n')
    source, _ = planned(tmp_path, Format.JSONL, text_column="a")
    assert (source.images, source.texts, source.image_column) == (True, True, "image_path")
    assert source.columns == {"n": "int64", "extra": "string"}
    source, _ = planned(tmp_path, Format.JSONL, text_column="a", images=False)
    assert source.columns == {"source_image_path": "string", "n": "int64", "extra": "string"}
    assert "no text column 'b'; the columns are: a, image_path, n" in refusal(tmp_path, Format.JSONL, text_column="b")
    assert "'n' cannot hold any" in refusal(tmp_path, Format.JSONL, image_column="n")
    assert "looks like texts" in refusal(tmp_path, Format.JSONL, texts=True)
    assert "nothing to embed" in refusal(tmp_path, Format.JSONL, images=False)
    (tmp_path / "b.jsonl").write_bytes(b"no json\n")
    assert "no line at its beginning" in refusal(tmp_path / "b.jsonl", Format.JSONL)


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
