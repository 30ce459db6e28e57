"""Files of lines: finding where the rows begin in one scan, and reading a range of them.

What makes a row is the format's: a *splitter* gives, from one byte position to another, where each row ends and its
bytes, or the error that it is. A piece's note is ``FIRST+COUNT``: its first row's number in the file, and how many.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.sources.discovery import containers, name, reason
from clip_queue.sources.formats.table import Table, changed
from clip_queue.sources.formats.tars import opened
from clip_queue.sources.source import Piece, Row, ShardPlan, Source, SourceError
from clip_queue.sources.storage import LOCAL, StoreAway, is_barred, shown, split

LIMIT = 16 * 2**20  # bytes of a row
BLOCK = 2**20
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".br", ".zip")

_BOM = b"\xef\xbb\xbf"
_NOT_LINES = {
    b"\x1f\x8b": "compressed (gzip): decompress it first",
    b"\x28\xb5\x2f\xfd": "compressed (zstd): decompress it first",
    b"BZh": "compressed (bzip2): decompress it first",
    b"\xfd7zXZ": "compressed (xz): decompress it first",
    b"PK\3\4": "a zip archive: unpack it first",
    b"\xff\xfe": "UTF-16: convert it to UTF-8 first",
    b"\xfe\xff": "UTF-16: convert it to UTF-8 first",
    b"PAR1": "parquet: say so with the format",
}

Splitter = Callable[[BinaryIO, int, int], Iterator[tuple[int, bytes | BadInput]]]
Marks = Callable[[BinaryIO, int, int, int, int], Iterator[tuple[int, int]]]
"""Of a file, from ``start`` to ``stop``: the number of rows before, and the position of, the end of the row ``first``,
of every ``every`` rows after it, and of the last row."""


def files(url: str, suffixes: tuple[str, ...]) -> list[tuple[bytes, int]]:
    """Path and size of each file. Raises :class:`SourceError` for one that is compressed."""
    found = containers(url, suffixes, tuple(suffix + packed for suffix in suffixes for packed in COMPRESSED))
    for path, _ in found:
        if path.lower().endswith(tuple(packed.encode() for packed in COMPRESSED)):
            raise SourceError(f"{shown(path)} is compressed, which cannot be read from the middle: decompress it first")
    return found


def first_byte(file: BinaryIO, title: str) -> int:
    """Where the text of a file begins, after a byte order mark. Raises :class:`SourceError` if it is no UTF-8 text."""
    file.seek(0)
    head = file.read(8)
    for magic, what in _NOT_LINES.items():
        if head.startswith(magic):
            raise SourceError(f"{title} is {what}")
    return len(_BOM) if head.startswith(_BOM) else 0


def lines(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes | BadInput]]:
    """The splitter of files whose rows are lines, with their ends. One that is too long is not read into memory."""
    file.seek(start)
    at = start
    while at < stop:
        line = file.readline(LIMIT + 1)
        at += len(line)
        if len(line) <= LIMIT:
            if not line:
                raise OSError(f"it ends at byte {at}, not {stop}")
            yield at, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(BLOCK)
            at += len(line)
        yield at, BadInput(f"The line is longer than {LIMIT} bytes.")


def line_marks(file: BinaryIO, start: int, stop: int, first: int, every: int) -> Iterator[tuple[int, int]]:
    """The marks of files whose rows are lines: newlines are counted by the block."""
    file.seek(start)
    rows, at, open_end = 0, start, False
    while at < stop and (block := file.read(min(BLOCK, stop - at))):
        count = block.count(b"\n")
        if rows + count >= first:
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
            while rows + count >= first:
                yield first, at + int(ends[first - rows - 1]) + 1
                first += every
        rows, at, open_end = rows + count, at + len(block), not block.endswith(b"\n")
    yield rows + open_end, at


def marks_of(splitter: Splitter) -> Marks:
    """The marks of files that only their splitter knows to split."""

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
    begin: Callable[[BinaryIO, str], int] = first_byte,
) -> Iterator[ShardPlan]:
    """Shards of ``size`` rows, over the files in order; each file is scanned once, when its turn comes.

    ``begin`` gives the position of a file's first row. Raises :class:`SourceError` for a file that cannot be read.
    """
    pieces: list[Piece] = []
    room = size
    for path, length in found:
        title = name(source.storage["root"], path)
        try:
            with buffered(split(source.url)[0], path) as (file, actual):
                rows, at = 0, begin(file, title)
                for rows_then, position in marks(file, at, actual, room, size):
                    if rows_then > rows:
                        pieces.append(Piece(path, at, position, actual, f"{rows}+{rows_then - rows}"))
                    room -= rows_then - rows
                    rows, at = rows_then, position
                    if not room:
                        yield ShardPlan(pieces, size)
                        pieces, room = [], size
        except ClipError:
            raise
        except Exception as error:  # whatever a remote store's client raises
            raise SourceError(f"{title} cannot be read: {reason(error)}") from error
        if at != actual or length not in (-1, actual):
            raise SourceError(f"{title} changes while it is read: try again once it is finished")
    if pieces:
        yield ShardPlan(pieces, size - room)


def read(
    source: Source, pieces: list[Piece], splitter: Splitter, parse: Callable[[Table, int, bytes], Row]
) -> Iterator[Row]:
    """The rows of some pieces; ``parse`` makes one of its bytes, or raises :class:`ClipError`."""
    for piece in pieces:
        table = Table(source, piece.path)
        number, count = map(int, piece.note.split("+"))
        end = number + count
        rows = _split(table, piece, splitter)
        while True:
            try:
                data = next(rows, None)
            except ClipError:
                raise
            except Exception as error:  # whatever a remote store's client raises
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
                row = parse(table, number, data)
            except ClipError as error:
                row = table.broken(number, error)
            yield row
            number += 1


@contextmanager
def buffered(protocol: str, path: bytes) -> Iterator[tuple[BinaryIO, int]]:
    """An open file and its size; lines of a remote one are read as fast as a local one's. Raises :class:`OSError`."""
    with opened(protocol, path) as (file, size):
        if size < 0:
            raise OSError("its store does not tell its size")
        yield file if protocol == LOCAL else cast(BinaryIO, io.BufferedReader(file, BLOCK)), size


def _split(table: Table, piece: Piece, splitter: Splitter) -> Iterator[bytes | BadInput]:
    with buffered(table.protocol, piece.path) as (file, size):
        if size != piece.size:
            raise changed(table)
        for _, data in splitter(file, piece.start, piece.stop):
            yield data
