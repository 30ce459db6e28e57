"""JSON Lines: an object a line. A text and the path or URL of a picture are two of its values; the rest are columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import orjson

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.sources.columns import choose, conform, infer, is_own
from clip_queue.sources.discovery import name, reason, root
from clip_queue.sources.formats import lines
from clip_queue.sources.formats.table import Table, find_by_path
from clip_queue.sources.formats.text import decoded
from clip_queue.sources.source import Piece, Planned, Row, Source, SourceError
from clip_queue.sources.storage import split

SUFFIXES = (".jsonl", ".ndjson")
LOOK = 1_000  # lines from which columns are inferred
LOOK_BYTES = 64 * 2**20


def plan(source: Source, shard_size: int) -> Planned:
    """Shards of exactly ``shard_size`` lines; columns as the first :data:`LOOK` lines have them.

    Raises:
        SourceError: no file, none that can be read, or nothing to embed in it.
    """
    found = lines.files(source.url, SUFFIXES)
    source = replace(source, storage={"root": root(source.url)})
    sample = list(islice(_sample(source, found), LOOK))
    if not sample:
        raise SourceError(f"{source.url}: no line at its beginning is a JSON object")
    names = list(dict.fromkeys(key for row in sample for key in row))
    texts = [key for key in names if all(isinstance(row.get(key), str | None) for row in sample)]
    source = choose(source, names, texts, texts)
    source = replace(source, columns=infer(_own(source, row) for row in sample))
    return source, lines.shards(source, found, shard_size, lines.line_marks)


def read(source: Source, pieces: list[Piece]) -> Iterator[Row]:
    """The rows of a shard."""
    image, text = source.image_column or "", source.text_column or ""

    def parse(table: Table, number: int, line: bytes) -> Row:
        values = parsed(line, number)
        return table.row(number, conform(_own(source, values), source.columns), values.get(image), values.get(text))

    return lines.read(source, pieces, lines.lines, parse)


def find(source: Source, image_path: str) -> bytes:
    """The picture of a row. Raises :class:`ClipError` or :class:`OSError`."""
    return find_by_path(source, image_path, SUFFIXES)


def parsed(line: bytes, number: int) -> dict[str, Any]:
    """The object of a line. Raises :class:`BadInput`, with the line's number as an editor has it."""
    text = decoded(line, number)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"Line {number + 1} is not JSON: {error.msg} (column {error.colno}).") from None
    if not isinstance(value, dict):
        raise BadInput(f"Line {number + 1} is JSON, but no object.")
    return value


def _own(source: Source, values: dict[str, Any]) -> dict[str, Any]:
    """What of a row goes into columns of its own."""
    return {key: value for key, value in values.items() if is_own(source, key)}


def _sample(source: Source, found: list[tuple[bytes, int]]) -> Iterator[dict[str, Any]]:
    """The objects that the files begin with; what is broken is passed over."""
    left = LOOK_BYTES
    for path, _ in found:
        shown = name(source.storage["root"], path)
        try:
            with lines.buffered(split(source.url)[0], path) as (file, size):
                for _, line in lines.lines(file, lines.first_byte(file, shown), size):
                    if isinstance(line, bytes):
                        left -= len(line)
                        with suppress(BadInput):
                            yield parsed(line, 0)
                    if left < 0:
                        return
        except ClipError:
            raise
        except Exception as error:  # whatever a remote store's client raises
            raise SourceError(f"{shown} cannot be read: {reason(error)}") from error
