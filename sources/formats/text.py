"""Text files: each line is a text. A blank line is a row that fails, so that rows keep the numbers of their lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources.discovery import root
from clip_queue.sources.formats import lines
from clip_queue.sources.formats.table import Table
from clip_queue.sources.left_out import PASSED, Passed
from clip_queue.sources.registry import FORMATS
from clip_queue.sources.source import Piece, Place, Planned, Row, Source, SourceError

SPEC = FORMATS["text"]


def plan_shards(source: Source, shard_size: int, settings: Settings) -> Planned:  # noqa: ARG001 - every format has it
    """Shards of exactly ``shard_size`` lines.

    Raises:
        SourceError: there is no file, one cannot be read, or more than texts are asked for.
    """
    if source.images or source.texts is False or source.image_column or source.text_column:
        raise SourceError("files of lines hold texts and nothing else: ask for no images and no columns")
    passed: Passed = {}
    found = lines.files(source.url, SPEC, passed)
    storage = {**source.storage, PASSED: passed, "root": root(source.url)}
    done = replace(source, images=False, texts=True, columns={}, storage=storage)
    return done, lines.shards(done, found, shard_size, lines.line_marks)


def read(source: Source, pieces: list[Piece], settings: Settings) -> Iterator[Row]:
    """The rows of a shard."""

    def parse(table: Table, number: int, line: bytes) -> list[Row]:
        return [table.row(number, {}, None, decoded(source, line, number))]

    return lines.read(source, pieces, settings, lines.lines, parse)


def find_image(
    source: Source,
    image_path: str,
    settings: Settings,  # noqa: ARG001 - every format has it
    place: Place | None = None,  # noqa: ARG001
) -> bytes:
    """A text file has no images. Raises :class:`BadInput`."""
    raise BadInput(f"{source.shown} holds texts: there is no image {image_path}")


def decoded(source: Source, line: bytes, number: int) -> str:
    """A line's text without the line's end. Raises :class:`BadInput` with the line's number, counted from 1."""
    try:
        text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"Line {number + 1} {lines.not_encoded(source, error)}.") from None
    if not text.strip():
        raise BadInput(f"Line {number + 1} is empty.")
    return text
