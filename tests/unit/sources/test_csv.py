"""CSV as a source."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_queue.shared.errors import BadInput
from clip_queue.sources.formats import lines
from clip_queue.sources.formats.csv import CsvSplitter, split_fields
from tests.unit.sources.tables import errors, planned, refusal, rows


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
        found = rows(tmp_path, "csv", size, images=False)
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
    source, _ = planned(tmp_path, "csv")
    assert (source.image_column, source.text_column) == ("url", "caption")
    assert source.columns == {"url": "string", "column_3": "string", "source_error": "string"}
    found = rows(tmp_path, "csv")
    assert found[6].error is None  # it has its image
    assert found[6].text is None
    assert callable(found[6].image)
    assert found[6].columns["image_path"] == "http://x/3"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_headers(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.tsv"
    with path.open("w", newline="") as file:
        out = csv.writer(file, delimiter=delimiter)
        out.writerows([["text", "b"], ["x,y;z\tw|v", 'a "b"']])
    found = rows(path, "csv")
    assert found[0].columns == {"image_path": "a.tsv#0", "caption": "x,y;z\tw|v", "b": 'a "b"'}


def test_a_csv_of_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"one, two"\nthree\n')
    assert [row.text for row in rows(tmp_path, "csv")] == ["one, two", "three"]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_quote_that_is_never_closed_costs_its_line(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.csv").write_text('text,b\n5" disk,1\n"two,2\nthree,3\nfour,4\nfive,5\n')
    found = rows(tmp_path, "csv", size)
    assert errors(found) == {1: "A quote in it is never closed."}
    assert [row.text for row in found] == ['5" disk', None, "three", "four", "five"]


def test_a_row_that_is_too_long() -> None:
    far = "".join(f"line {n}\n" for n in range(10))
    found = split(f'text\n"{far}"\n{"x" * 99}\n"{"y" * 99}"\nend\n', limit=30)
    rows = [None if isinstance(row, BadInput) else row.decode().strip() for row in found]
    # The quote that closes the first is one that opens, to the row's end.
    assert rows == ["text", None, *[f"line {n}" for n in range(1, 10)], None, None, None, "end"]


def test_csv_files_may_lack_columns_of_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,b\none,1\n")
    (tmp_path / "b.csv").write_text('c,text\n2,"t\nwo"\n3,three\n')
    (tmp_path / "c.csv").write_text("b,c,text\n1,2,four\n1,five\n")
    found = rows(tmp_path, "csv")
    assert [row.text for row in found] == ["one", "t\nwo", "three", "four", None]
    assert [row.columns.get("b") for row in found] == ["1", None, None, "1", None]
    assert [row.columns.get("c") for row in found] == [None, "2", "3", "2", None]
    assert list(errors(found)) == [4]


def test_csv_as_it_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id~text\n1~5" of, "x\n2~"q"\n')
    asked = {"storage": {"delimiter": "~", "quoting": False}}
    assert [row.text for row in rows(path, "csv", **asked)] == ['5" of, "x', '"q"']
    assert [row.text for row in rows(path, "csv", storage={"delimiter": "~"})] == ['5" of, "x', "q"]
    path.write_text("text,a;b;c\nx,1;2;3\n")
    assert rows(path, "csv", storage={"delimiter": ","})[0].columns["a;b;c"] == "1;2;3"


def test_csv_files_have_a_header_each(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,b\none,1\n")
    (tmp_path / "b.csv").write_text("")
    (tmp_path / "c.csv").write_text("text,b\n")
    assert len(rows(tmp_path, "csv")) == 1
    (tmp_path / "d.csv").write_text("one,2\ntwo,2\n")
    assert "d.csv has the columns one, 2; the first file has text, b" in refusal(tmp_path, "csv")
    assert "same name: text" in refusal_of(tmp_path / "e.csv", "text,text\n")
    assert "no header" in refusal_of(tmp_path / "f.csv", "")
    assert "no header" in refusal_of(tmp_path / "g.csv", "\n\n")


def refusal_of(path: Path, data: str) -> str:
    path.write_text(data)
    return refusal(path, "csv")


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
                assert [split_fields(each.decode(), ",") for each in found] == wanted  # type: ignore[union-attr]


def split(data: str, limit: int = lines.LIMIT) -> list[bytes | BadInput]:
    raw = data.encode()
    parts = list(CsvSplitter(",", limit=limit)(io.BytesIO(raw), 0, len(raw)))
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
    assert [split_fields(each.decode(), ",") for each in split(data)] == wanted  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_stray_quote_costs_its_own_row(tmp_path: Path, size: int) -> None:
    """It was closed two lines on, by a quote that other text follows, and the rows between were lost."""
    (tmp_path / "a.tsv").write_text('path\tcaption\n0.png\t"broken quote\n1.png\tfine\n2.png\t5" pipe\n3.png\tend\n')
    found = rows(tmp_path, "csv", size)
    assert errors(found)[0] == "A quote in it is never closed."
    assert [row.text for row in found] == [None, "fine", '5" pipe', "end"]


def test_a_stray_quote_that_another_one_closes_costs_its_own_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('caption,a,b\n"one,1,1\ntwo,2,2\n"three",3,3\n"four\nlines",4,4\n"five",5,5\n')
    found = rows(tmp_path, "csv", 100)
    assert list(errors(found)) == [0]
    assert [row.text for row in found] == [None, "two", "three", "four\nlines", "five"]


def test_a_row_of_several_lines_needs_a_field_for_each_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('caption,a,b\n1,2,"three\n4,5",6,7\n8,9,10\n')
    found = rows(tmp_path, "csv", 100)
    assert list(errors(found)) == [0, 1]
    assert found[2].text == "8"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (b"image,caption\r0.png,cat\r", "its lines end in a carriage return, write them with newlines"),
        (b'image, "caption"\n0.png, "a, b"\n', "a blank stands before a quote in its header"),
        (b"image,caption\n,\n,\n", None),
    ],
)
def test_a_header_that_would_mislead_is_refused(tmp_path: Path, written: bytes, says: str | None) -> None:
    (tmp_path / "a.csv").write_bytes(written)
    if says:
        assert says in refusal(tmp_path, "csv")
    else:
        assert len(errors(rows(tmp_path, "csv"))) == 2, "each row says that it is empty"


def test_an_empty_column_gives_way_to_the_next_likely_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,url,caption\n,a.png,x\n,b.png,\n")
    source, _ = planned(tmp_path, "csv")
    assert (source.image_column, source.text_column) == ("url", "caption")
    assert "the image column 'image' holds none to be read" in refusal(tmp_path, "csv", image_column="image")


def test_a_row_of_another_encoding_says_which_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"caption\ncaf\xe9\nfine\n")
    found = rows(tmp_path, "csv", storage={"encoding": "ascii"})
    assert errors(found) == {0: "Row 1 is not ascii."}


def test_files_without_a_column_in_common_are_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("caption\nx\n")
    (tmp_path / "b.csv").write_text("text\nx\n")
    assert refusal(tmp_path, "csv").endswith("embed files without a column in common apart")
