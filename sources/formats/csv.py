"""CSV: the first row names the columns, fields may be quoted, and a quoted field may hold newlines.

The delimiter is the one of ``, ; tab |`` that gives the header most columns, or the one that is asked for. All columns
are texts. A file may lack columns of others. Without quoting a quote is a character as any other, and a row is a line.

A stray quote would swallow the lines after it: where no row of several lines comes out as CSV, with a field for each
column and within :data:`clip_queue.sources.formats.lines.LIMIT` bytes, its line is a row that fails, and the next line
is the next row.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import BinaryIO

from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import HELD_AS, LEFT_OUT, TEXT, check_image_root, choose, is_own, name_in, own_name
from clip_queue.sources.discovery import name, root
from clip_queue.sources.formats import lines
from clip_queue.sources.formats.table import Table
from clip_queue.sources.formats.text_files import open_text
from clip_queue.sources.left_out import PASSED, Passed
from clip_queue.sources.registry import FORMATS
from clip_queue.sources.source import Piece, Place, Planned, Row, Source, SourceError
from clip_queue.sources.storage import reason

SPEC = FORMATS["csv"]
DELIMITERS = ",;\t|"

_Headers = dict[str, list[str]]

csv.field_size_limit(lines.LIMIT)  # no row is longer, so no field is


def plan_shards(source: Source, shard_size: int, settings: Settings) -> Planned:  # noqa: ARG001 - every format has it
    """Shards of exactly ``shard_size`` rows.

    Raises:
        SourceError: there is no file, one cannot be read or has other columns than the rest, or nothing to embed.
    """
    passed: Passed = {}
    found = lines.files(source.url, SPEC, passed)
    folder = root(source.url)
    quoting = source.storage.get("quoting") is not False
    headers, delimiter = _headers(source, folder, found, quoting=quoting)
    header = list(dict.fromkeys(column for each in headers.values() for column in each))
    others = {title: each for title, each in headers.items() if each != header}
    storage = {
        **source.storage,
        PASSED: passed,
        "root": folder,
        HELD_AS: TEXT,
        "header": header,
        "delimiter": delimiter,
        "others": others,
    }
    source = replace(source, storage=storage)

    def begin(file: BinaryIO, title: str) -> int:
        here = _header(file, title, delimiter, quoting=quoting)
        if here is None:
            return file.seek(0, io.SEEK_END)
        if here[1] != headers.get(title):
            raise SourceError(f"{title} changes while it is read: try again once it is finished")
        return here[0]

    filled = _filled(source, found, begin)
    source = choose(source, header, filled, filled)
    check_image_root(source)
    own = {own_name(column): "string" for column in header if is_own(source, column)}
    source = replace(source, columns=own)
    marks = lines.marks_of(_reading(source)[0]) if quoting else lines.line_marks
    return source, lines.shards(source, found, shard_size, marks, begin)


def read(source: Source, pieces: list[Piece], settings: Settings) -> Iterator[Row]:
    """The rows of a shard."""
    return lines.read(source, pieces, settings, *_reading(source))


def _reading(source: Source) -> tuple[lines.Splitter, lines.Parse]:
    """What splits a file into rows, and what makes a row of its bytes."""
    all_columns, delimiter = source.storage["header"], source.storage["delimiter"]
    quoting = source.storage.get("quoting") is not False
    own = [(name_in(source, column), column) for column in all_columns if is_own(source, column)]

    def parse(table: Table, number: int, data: bytes) -> list[Row]:
        values = _values(source, table.name, number, data)
        columns = {key: values.get(column) for key, column in own}
        image, text = (values.get(column or "") for column in (source.image_column, source.text_column))
        return [table.row(number, columns, image, text)]

    same = not source.storage.get("others")
    return _splitter(delimiter, len(all_columns) if same else 0, quoting=quoting), parse


def _values(source: Source, title: str, number: int, data: bytes) -> dict[str, str]:
    """A row's values by column. Raises :class:`BadInput` if it is not one of its file."""
    others: _Headers = source.storage.get("others") or {}  # of the files that have other columns, by name
    header = others.get(title, source.storage["header"])
    try:
        quoting = source.storage.get("quoting") is not False
        fields = split_fields(data.decode(), source.storage["delimiter"], quoting=quoting)
    except UnicodeDecodeError as error:
        raise BadInput(f"Row {number + 1} {lines.not_encoded(source, error)}.") from None
    except csv.Error as error:
        raise BadInput(f"Row {number + 1} is not CSV: {error}.") from None
    if len(fields) != len(header):
        has = f"has {len(fields)} fields, the header {len(header)}" if fields else "is empty"
        raise BadInput(f"Row {number + 1} {has}.")
    return dict(zip(header, fields, strict=True))


def _filled(source: Source, found: list[tuple[bytes, int]], begin: lines.Begin) -> list[str]:
    """The columns without those that by their names are the images or the texts, and are empty in every row.

    Rows are read until the likeliest columns hold something, which most often the first one tells.
    """
    header: list[str] = source.storage["header"]
    likely = choose(source, header, header, header)
    wanted = {column for column in (likely.image_column, likely.text_column) if column}
    filled: set[str] = set()
    for title, number, data in lines.rows(source, found, _reading(source)[0], begin):
        with suppress(BadInput):
            filled |= {column for column, value in _values(source, title, number, data).items() if value.strip()}
        if wanted <= filled:
            return header
    return [column for column in header if column in filled] or header  # no row tells anything


def find_image(source: Source, image_path: str, settings: Settings, place: Place | None = None) -> bytes:
    """The image of a row. Raises :class:`ClipError` or :class:`OSError`."""
    only = replace(source, texts=False, text_column=None, columns={}, storage={**source.storage, LEFT_OUT: {}})
    delimiter, quoting = source.storage["delimiter"], source.storage.get("quoting") is not False

    def begin(file: BinaryIO, title: str) -> int:
        header = _header(file, title, delimiter, quoting=quoting)
        return header[0] if header else 0

    return lines.find_image(only, image_path, settings, *_reading(only), begin, place)


class CsvSplitter:
    """The splitter of CSV. It ends rows where :mod:`csv` does; that module does not tell at which byte a row ends.

    It works on bytes: in UTF-8 no part of a character looks like a quote, a delimiter or a newline.
    """

    def __init__(self, delimiter: str, columns: int = 0, *, limit: int = lines.LIMIT) -> None:
        """``columns``: fields of a row, 0: not known. ``limit``: the longest row, bytes."""
        self._delimiter, self._columns, self._limit = delimiter, columns, limit
        quoted, rest = rb'(?:[^"]++|"")*+', rb"[^D]*+D".replace(b"D", re.escape(delimiter.encode()))
        # Fields up to the last one. After a closing quote, csv takes all that follows literally, quotes as well.
        fields = rb'(?:"' + quoted + rb'"' + rest + rb'|(?!")' + rest + rb")*+"
        opens = fields + rb'"' + quoted + rb"\Z"
        self._opens = re.compile(opens)
        self._stays = re.compile(quoted + rb"\Z" + rb"|" + quoted + rb'"' + rest + opens)

    def __call__(self, file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes | BadInput]]:
        while start < stop:
            held: list[bytes] = []
            size = after_first = 0
            for end, line in lines.lines(file, start, stop, limit=self._limit):
                if not held and (isinstance(line, BadInput) or b'"' not in line or not self._opens.match(line)):
                    yield end, line
                    start = end
                    continue
                size += self._limit + 1 if isinstance(line, BadInput) else len(line)
                if size > self._limit or isinstance(line, BadInput):
                    break
                after_first = after_first or end
                is_open = not held or self._stays.match(line)
                held.append(line)
                if not is_open:
                    row = b"".join(held)
                    if not self._is_row(row):
                        break
                    yield end, row
                    held, size, start, after_first = [], 0, end, 0
            if held:
                yield after_first, BadInput("A quote in it is never closed.")
                start = after_first

    def _is_row(self, row: bytes) -> bool:
        """Whether several lines are one row: nothing but a delimiter follows a closing quote, and no field lacks."""
        try:
            fields = split_fields(row.decode(errors="replace"), self._delimiter, strict=True)
        except csv.Error:
            return False
        return self._columns in (0, len(fields))


def _splitter(delimiter: str, columns: int = 0, *, quoting: bool) -> lines.Splitter:
    return CsvSplitter(delimiter, columns) if quoting else lines.lines


def split_fields(row: str, delimiter: str, *, strict: bool = False, quoting: bool = True) -> list[str]:
    """The fields of a row; ``strict``: a quote within a field must be doubled. Raises :class:`csv.Error`."""
    if not quoting:
        row = row.removesuffix("\n").removesuffix("\r")
        return row.split(delimiter) if row else []
    return next(csv.reader([row], delimiter=delimiter, strict=strict), [])


def _header(file: BinaryIO, title: str, delimiters: str, *, quoting: bool) -> tuple[int, list[str], str] | None:
    """The byte at which a file's rows begin, its columns, and the delimiter that gives most; None if it is empty."""
    start = lines.first_byte(file, title)
    stop = file.seek(0, io.SEEK_END)
    found: list[tuple[int, list[str], str]] = []
    for delimiter in delimiters:
        for end, row in islice(_splitter(delimiter, quoting=quoting)(file, start, stop), 1):
            if isinstance(row, BadInput):
                raise SourceError(f"{title}: its header cannot be read. {row.message}")
            try:
                fields = split_fields(row.decode(), delimiter, quoting=quoting)
            except (UnicodeDecodeError, csv.Error) as error:
                why = "its lines end in a carriage return, write them with newlines" if b"\r" in row else str(error)
                raise SourceError(f"{title}: its header cannot be read: {why}") from None
            found.append((end, [field or f"column_{number}" for number, field in enumerate(fields, 1)], delimiter))
    return max(found, key=lambda each: len(each[1]), default=None)


def _headers(source: Source, folder: str, found: list[tuple[bytes, int]], *, quoting: bool) -> tuple[_Headers, str]:
    """The columns of each file that has any, by name, and the delimiter of the first, which is that of all.

    Raises:
        SourceError: a file cannot be read, or has no column of the first one's: then its first row is no header.
    """
    headers: _Headers = {}
    delimiters = source.storage.get("delimiter") or DELIMITERS
    for path, _ in found:
        title = name(folder, path)
        try:
            with open_text(source, path) as (file, *_):
                header = _header(file, title, delimiters, quoting=quoting)
        except OSError as error:
            raise SourceError(f"{title} cannot be read: {reason(error)}") from error
        if header is None or not header[1]:
            continue
        first = next(iter(headers.values()), header[1])
        if not set(first) & set(header[1]):
            raise SourceError(
                f"{title} has the columns {', '.join(header[1])}; the first file has {', '.join(first)}: embed files "
                "without a column in common apart"
            )
        if quoting and (shifted := next((column for column in header[1] if column.startswith((' "', '\t"'))), None)):
            raise SourceError(
                f"{title}: a blank stands before a quote in its header ({shifted}): take such blanks out, or read it "
                "with --no-quoting"
            )
        if doubled := sorted({column for column in header[1] if header[1].count(column) > 1}):
            raise SourceError(f"columns of the same name: {', '.join(doubled)}")
        headers[title], delimiters = header[1], header[2]
    if not headers:
        raise SourceError(f"{source.shown}: there is no header, and nothing else")
    return headers, delimiters
