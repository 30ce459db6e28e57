"""JSON Lines: each line is an object. Two of its values are a text and an image's path or URL; the rest are columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import orjson

from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import choose, conform, infer, is_own
from clip_queue.sources.discovery import name, root
from clip_queue.sources.formats import lines
from clip_queue.sources.formats.table import Table, find_by_path
from clip_queue.sources.formats.text import decoded
from clip_queue.sources.registry import FORMATS
from clip_queue.sources.source import Piece, Planned, Row, Source, SourceError
from clip_queue.sources.storage import reason, split

SPEC = FORMATS["jsonl"]
SAMPLE_LINES = 1_000  # lines from which columns are inferred
SAMPLE_BYTES = 64 * 2**20  # bytes of lines that are read for them


def plan_shards(
    source: Source,
    shard_size: int,
    settings: Settings,  # noqa: ARG001 - every format has it
    *,
    sample_lines: int = SAMPLE_LINES,
) -> Planned:
    """Shards of exactly ``shard_size`` lines. The first ``sample_lines`` objects tell the columns.

    Raises:
        SourceError: there is no file, one cannot be read, or they hold nothing to embed.
    """
    found = lines.files(source.url, SPEC)
    source = replace(source, storage={"root": root(source.url)})
    sample = list(islice(_sample(source, found), sample_lines))
    if not sample:
        raise SourceError(f"{source.url}: no line at its beginning is a JSON object")
    names = list(dict.fromkeys(key for row in sample for key in row))
    texts = [key for key in names if all(isinstance(row.get(key), str | None) for row in sample)]
    source = choose(source, names, texts, texts)
    source = replace(source, columns=infer(_own(source, row) for row in sample))
    return source, lines.shards(source, found, shard_size, lines.line_marks)


def read(source: Source, pieces: list[Piece], settings: Settings) -> Iterator[Row]:
    """The rows of a shard."""
    image, text = source.image_column or "", source.text_column or ""

    def parse(table: Table, number: int, line: bytes) -> Row:
        values = parsed(line, number)
        return table.row(number, conform(_own(source, values), source.columns), values.get(image), values.get(text))

    return lines.read(source, pieces, settings, lines.lines, parse)


def find_image(source: Source, image_path: str, settings: Settings) -> bytes:
    """The image of a row. Raises :class:`ClipError` or :class:`OSError`."""
    return find_by_path(source, image_path, SPEC.suffixes, settings)


def parsed(line: bytes, number: int) -> dict[str, Any]:
    """A line's object. Raises :class:`BadInput` with the line's number, counted from 1."""
    text = decoded(line, number)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"Line {number + 1} is not JSON: {error.msg} (column {error.colno}).") from None
    if not isinstance(value, dict):
        raise BadInput(f"Line {number + 1} is JSON, but no object.")
    return value


def _own(source: Source, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a row that go into the source's own columns."""
    return {key: value for key, value in values.items() if is_own(source, key)}


def _sample(source: Source, found: list[tuple[bytes, int]]) -> Iterator[dict[str, Any]]:
    """The first objects of the files; broken lines are passed over."""
    left = SAMPLE_BYTES
    for path, _ in found:
        title = name(source.storage["root"], path)
        try:
            with lines.buffered(split(source.url)[0], path) as (file, size):
                for _, line in lines.lines(file, lines.first_byte(file, title), size):
                    if isinstance(line, bytes):
                        left -= len(line)
                        with suppress(BadInput):
                            yield parsed(line, 0)
                    if left < 0:
                        return
        except OSError as error:
            raise SourceError(f"{title} cannot be read: {reason(error)}") from error
