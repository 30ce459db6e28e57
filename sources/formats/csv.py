"""CSV: the first row names the columns, fields may be quoted, and a quoted field may hold newlines.

The delimiter is the one of ``, ; tab |`` that gives the header most columns. All columns are texts. A quote that is
not closed within :data:`clip_queue.sources.formats.lines.LIMIT` bytes would swallow what follows: its line is a row that fails, and
the next line is the next row.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, BinaryIO

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.sources.columns import choose, is_own, own_name
from clip_queue.sources.discovery import name, reason, root
from clip_queue.sources.formats import lines
from clip_queue.sources.formats.table import Table, find_by_path
from clip_queue.sources.source import Piece, Planned, Row, Source, SourceError
from clip_queue.sources.storage import split

SUFFIXES = (".csv", ".tsv")
DELIMITERS = ",;\t|"

csv.field_size_limit(lines.LIMIT)  # rows are bounded as such


def plan(source: Source, shard_size: int) -> Planned:
    """Shards of exactly ``shard_size`` rows.

    Raises:
        SourceError: no file, one that cannot be read or has other columns than the rest, or nothing to embed.
    """
    found = lines.files(source.url, SUFFIXES)
    folder = root(source.url)
    header, delimiter = _first_header(source, folder, found)
    if doubled := sorted({column for column in header if header.count(column) > 1}):
        raise SourceError(f"columns of the same name: {', '.join(doubled)}")
    source = choose(source, header, header, header)
    own = {own_name(column): "string" for column in header if is_own(source, column)}
    storage = {"root": folder, "header": header, "delimiter": delimiter}
    source = replace(source, columns=own, storage=storage)

    def begin(file: BinaryIO, shown: str) -> int:
        here = _header(file, shown, delimiter)
        if here is None:
            return file.seek(0, io.SEEK_END)
        if here[1] != header:
            raise SourceError(f"{shown} has the columns {', '.join(here[1])}; the first file has {', '.join(header)}")
        return here[0]

    return source, lines.shards(source, found, shard_size, lines.marks_of(_Splitter(delimiter)), begin)


def read(source: Source, pieces: list[Piece]) -> Iterator[Row]:
    """The rows of a shard."""
    header, delimiter = source.storage["header"], source.storage["delimiter"]
    own = [(own_name(column), column) for column in header if is_own(source, column)]

    def parse(table: Table, number: int, data: bytes) -> Row:
        try:
            fields = _fields(data.decode(), delimiter)
        except UnicodeDecodeError as error:
            raise BadInput(f"Row {number + 1} is not UTF-8 (from its byte {error.start + 1} on).") from None
        except csv.Error as error:
            raise BadInput(f"Row {number + 1} is not CSV: {error}.") from None
        if len(fields) != len(header):
            has = f"has {len(fields)} fields, the header {len(header)}" if fields else "is empty"
            raise BadInput(f"Row {number + 1} {has}.")
        values: dict[str | None, Any] = dict(zip(header, fields, strict=True))
        columns = {key: values[column] for key, column in own}
        return table.row(number, columns, values.get(source.image_column), values.get(source.text_column))

    return lines.read(source, pieces, _Splitter(delimiter), parse)


def find(source: Source, image_path: str) -> bytes:
    """The picture of a row. Raises :class:`ClipError` or :class:`OSError`."""
    return find_by_path(source, image_path, SUFFIXES)


class _Splitter:
    """Where rows end, as :mod:`csv` sees it, which would have to be given the rows one by one to tell.

    It works on bytes: in UTF-8 no part of a character looks like a quote, a delimiter or a newline.
    """

    def __init__(self, delimiter: str) -> None:
        quoted, rest = rb'(?:[^"]++|"")*+', rb"[^D]*+D".replace(b"D", re.escape(delimiter.encode()))
        # Fields up to the last one; after a closing quote, csv takes what follows as it stands, quotes as well.
        fields = rb'(?:"' + quoted + rb'"' + rest + rb'|(?!")' + rest + rb")*+"
        opens = fields + rb'"' + quoted + rb"\Z"
        self._opens = re.compile(opens)
        self._stays = re.compile(quoted + rb"\Z" + rb"|" + quoted + rb'"' + rest + opens)

    def __call__(self, file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes | BadInput]]:
        while start < stop:
            held: list[bytes] = []
            size = after_first = 0
            for end, line in lines.lines(file, start, stop):
                if not held and (isinstance(line, BadInput) or b'"' not in line or not self._opens.match(line)):
                    yield end, line
                    start = end
                    continue
                size += lines.LIMIT + 1 if isinstance(line, BadInput) else len(line)
                if size > lines.LIMIT or isinstance(line, BadInput):
                    break
                after_first = after_first or end
                is_open = not held or self._stays.match(line)
                held.append(line)
                if not is_open:
                    yield end, b"".join(held)
                    held, size, start, after_first = [], 0, end, 0
            if held:
                yield after_first, BadInput("A quote in it is never closed.")
                start = after_first


def _fields(row: str, delimiter: str) -> list[str]:
    return next(csv.reader([row], delimiter=delimiter), [])


def _header(file: BinaryIO, shown: str, delimiters: str) -> tuple[int, list[str], str] | None:
    """Where a file's rows begin, its columns, and which of ``delimiters`` gives most; None if nothing is in it."""
    start = lines.first_byte(file, shown)
    stop = file.seek(0, io.SEEK_END)
    found: list[tuple[int, list[str], str]] = []
    for delimiter in delimiters:
        for end, row in islice(_Splitter(delimiter)(file, start, stop), 1):
            if isinstance(row, BadInput):
                raise SourceError(f"{shown}: its header cannot be read. {row.message}")
            try:
                fields = _fields(row.decode(), delimiter)
            except (UnicodeDecodeError, csv.Error) as error:
                raise SourceError(f"{shown}: its header cannot be read: {error}") from None
            found.append((end, [field or f"column_{number}" for number, field in enumerate(fields, 1)], delimiter))
    return max(found, key=lambda each: len(each[1]), default=None)


def _first_header(source: Source, folder: str, found: list[tuple[bytes, int]]) -> tuple[list[str], str]:
    """Columns and delimiter of the first file that has any."""
    for path, _ in found:
        shown = name(folder, path)
        try:
            with lines.buffered(split(source.url)[0], path) as (file, _):
                header = _header(file, shown, DELIMITERS)
        except ClipError:
            raise
        except Exception as error:  # whatever a remote store's client raises
            raise SourceError(f"{shown} cannot be read: {reason(error)}") from error
        if header and header[1]:
            return header[1], header[2]
    raise SourceError(f"{source.url}: there is no header, and nothing else")
