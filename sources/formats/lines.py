"""Files of lines: find where the rows begin in one scan, and read a range of them.

The format says what a row is, with a *splitter*: from one byte position to another, it gives the end of each row, and
the row's bytes or its error. A piece's note is ``FIRST+COUNT``: the number of its first row in the file, and how many
rows it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import BinaryIO

import numpy as np

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources.discovery import containers, name
from clip_queue.sources.formats.table import Table, changed, container_of, find_by_path
from clip_queue.sources.formats.text_files import open_text
from clip_queue.sources.left_out import Passed
from clip_queue.sources.registry import FORMATS, PACKED, UNPACKED, FormatSpec
from clip_queue.sources.source import Piece, Place, Row, Shard, Source, SourceError
from clip_queue.sources.storage import StoreAway, display, is_barred, reason

LIMIT = 16 * 2**20  # bytes of a row
BLOCK = 2**20  # bytes that are read at once

_BOM = b"\xef\xbb\xbf"
_NOT_LINES = {
    b"\x1f\x8b": "compressed (gzip) more than once: decompress it first",
    b"PK\3\4": "a zip archive: unpack it first",
    b"\xff\xfe": "UTF-16: say so with the encoding",
    b"\xfe\xff": "UTF-16: say so with the encoding",
    b"PAR1": "parquet: say so with the format",
}

Splitter = Callable[[BinaryIO, int, int], Iterator[tuple[int, bytes | BadInput]]]
"""``splitter(file, start, stop)`` gives the byte at which each row ends, and the row's bytes, or its error."""
Parse = Callable[[Table, int, bytes], list[Row]]
"""``parse(table, number, data)`` makes rows of a row's bytes, several where it holds several images, or raises
:class:`ClipError`; ``number`` is its place in the file."""
Begin = Callable[[BinaryIO, str], int]
"""``begin(file, title)`` gives the byte at which a file's first row begins; ``title`` names it in messages."""
Marks = Callable[[BinaryIO, int, int, int, int], Iterator[tuple[int, int]]]
"""``marks(file, start, stop, first, every)`` gives, for the rows from byte ``start`` to ``stop``, how many of them have
ended and at which byte: after ``first`` rows, after each ``every`` rows from there, and at the end."""


def files(url: str, spec: FormatSpec, passed: Passed | None = None) -> list[tuple[bytes, int]]:
    """Path and size in bytes of each file. Raises :class:`SourceError` for one that cannot be unpacked.

    ``passed`` gets the files of other kinds.
    """
    found = containers(url, spec.suffixes, spec.compressed, passed)
    for path, _ in found:
        if path.lower().endswith(tuple(packed.encode() for packed in PACKED if packed not in UNPACKED)):
            raise SourceError(f"{display(path)} is compressed in a way that is not read here: decompress it first")
    return found


def first_byte(file: BinaryIO, title: str) -> int:
    """The byte at which a file's text begins, after a byte order mark. Raises :class:`SourceError` if it is no text."""
    file.seek(0)
    head = file.read(8)
    for magic, what in _NOT_LINES.items():
        if head.startswith(magic):
            raise SourceError(f"{title} is {what}")
    return len(_BOM) if head.startswith(_BOM) else 0


def lines(
    file: BinaryIO, start: int, stop: int, *, limit: int = LIMIT, block: int = BLOCK
) -> Iterator[tuple[int, bytes | BadInput]]:
    """The splitter of files whose rows are lines; a line keeps its end.

    Args:
        limit: the longest line, bytes. A longer one is an error and is not read into memory.
        block: how many bytes of it are read at once.

    Raises:
        OSError: the file ends before ``stop``.
    """
    file.seek(start)
    at = start
    while at < stop:
        line = file.readline(limit + 1)
        at += len(line)
        if len(line) <= limit:
            if not line:
                raise OSError(f"it ends at byte {at}, not {stop}")
            yield at, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(block)
            at += len(line)
        yield at, BadInput(f"The line is longer than {limit} bytes.")


def line_marks(
    file: BinaryIO, start: int, stop: int, first: int, every: int, *, block: int = BLOCK
) -> Iterator[tuple[int, int]]:
    """The :data:`Marks` of files whose rows are lines: newlines are counted in blocks of ``block`` bytes."""
    file.seek(start)
    rows, at, open_end = 0, start, False
    while at < stop and (data := file.read(min(block, stop - at))):
        count = data.count(b"\n")
        if rows + count >= first:
            ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
            while rows + count >= first:
                yield first, at + int(ends[first - rows - 1]) + 1
                first += every
        rows, at, open_end = rows + count, at + len(data), not data.endswith(b"\n")
    yield rows + open_end, at


def marks_of(splitter: Splitter) -> Marks:
    """The :data:`Marks` of files whose rows only their splitter can tell."""

    def marks(file: BinaryIO, start: int, stop: int, first: int, every: int) -> Iterator[tuple[int, int]]:
        rows, at = 0, start
        for at, _ in splitter(file, start, stop):
            rows += 1
            if rows == first:
                yield rows, at
                first += every
        yield rows, at

    return marks


def shards(
    source: Source,
    found: list[tuple[bytes, int]],
    size: int,
    marks: Marks,
    begin: Begin = first_byte,
) -> Iterator[Shard]:
    """Shards of ``size`` rows, over the files in order. Each file is scanned once, when its turn comes.

    Args:
        found: path and size of each file.

    Raises:
        SourceError: a file cannot be read, or changes while it is read.
    """
    pieces: list[Piece] = []
    room = size
    for path, length in found:
        title = name(source.storage["root"], path)
        try:
            with open_text(source, path) as (file, end, actual):
                rows, at = 0, begin(file, title)
                for rows_then, position in marks(file, at, end, room, size):
                    if rows_then > rows:
                        pieces.append(Piece(path, at, position, actual, f"{rows}+{rows_then - rows}"))
                    room -= rows_then - rows
                    rows, at = rows_then, position
                    if not room:
                        yield Shard(pieces, size)
                        pieces, room = [], size
        except OSError as error:
            raise SourceError(f"{title} cannot be read: {reason(error)}") from error
        if at != end or length not in (-1, actual):
            raise SourceError(f"{title} changes while it is read: try again once it is finished")
    if pieces:
        yield Shard(pieces, size - room)


def rows(
    source: Source, found: list[tuple[bytes, int]], splitter: Splitter, begin: Begin = first_byte
) -> Iterator[tuple[str, int, bytes]]:
    """The rows of all files that can be told apart: the file's name, the row's number there, and its bytes.

    Raises:
        SourceError: a file cannot be read.
    """
    for path, _ in found:
        title = name(source.storage["root"], path)
        try:
            with open_text(source, path) as (file, end, _):
                for number, (_, data) in enumerate(splitter(file, begin(file, title), end)):
                    if isinstance(data, bytes):
                        yield title, number, data
        except OSError as error:
            raise SourceError(f"{title} cannot be read: {reason(error)}") from error


def not_encoded(source: Source, error: UnicodeDecodeError) -> str:
    """What is wrong with a row that is not of the encoding, for messages."""
    encoding = source.storage.get("encoding")
    return f"is not {encoding}" if encoding else f"is not UTF-8 (from its byte {error.start + 1} on)"


def read(
    source: Source,
    pieces: list[Piece],
    settings: Settings,
    splitter: Splitter,
    parse: Parse,
) -> Iterator[Row]:
    """The rows of some pieces.

    Raises:
        SourceError: a file is not the one that was planned.
        StoreAway: the files' store is away or refuses them: no row is to blame.
    """
    for piece in pieces:
        table = Table(source, piece.path, settings)
        number, count = map(int, piece.note.split("+"))
        end = number + count
        rows = _split(source, table, piece, splitter)
        while True:
            try:
                data = next(rows, None)
            except OSError as error:
                if is_barred(error):
                    raise StoreAway(reason(error)) from error
                yield from table.lost(number, end, f"cannot be read ({reason(error)})")
                break
            if (data is None) != (number == end):
                raise changed(table)
            if data is None:
                break
            try:
                if isinstance(data, BadInput):
                    raise data
                made = parse(table, number, data)
            except ClipError as error:
                made = [table.broken(number, error)]
            yield from made
            number += 1


def find_image(
    source: Source,
    image_path: str,
    settings: Settings,
    splitter: Splitter,
    parse: Parse,
    begin: Begin = first_byte,
    place: Place | None = None,
) -> bytes:
    """The image of a row that has it as a path, or within (FILE#NUMBER: the rows before are passed over).

    Raises:
        ClipError: there is none, or it cannot be loaded.
        OSError: it cannot be read.
    """
    spec = FORMATS[source.format]
    at = container_of(source, image_path, spec.suffixes + spec.compressed)
    if at is None:
        return find_by_path(source, image_path, spec.suffixes + spec.compressed, settings, place)
    table = Table(source, at[0], settings)
    with open_text(source, at[0]) as (file, end, _):
        _, data = next(islice(splitter(file, begin(file, table.name), end), at[1], None), (0, None))
    if isinstance(data, BadInput):
        raise data
    made = parse(table, at[1], data)[at[2] :] if data is not None else []
    row = made[0] if made else Row({}, error=BadInput(f"there is no row {image_path}"))
    if row.error is not None:
        raise row.error
    assert row.image is not None
    return row.image() if callable(row.image) else row.image


def _split(source: Source, table: Table, piece: Piece, splitter: Splitter) -> Iterator[bytes | BadInput]:
    with open_text(source, piece.path) as (file, _, size):
        if size != piece.size:
            raise changed(table)
        for _, data in splitter(file, piece.start, piece.stop):
            yield data
