"""JSON Lines: each line is an object; or a JSON array of objects.

Two of its values are a text and an image's path or URL; the rest are columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import HELD_AS, LEFT_OUT, TEXT, choose, conform, infer, is_own, is_wanted, with_wanted
from clip_queue.sources.discovery import name, root
from clip_queue.sources.formats import lines
from clip_queue.sources.formats.table import Table
from clip_queue.sources.formats.text import decoded
from clip_queue.sources.formats.text_files import open_text
from clip_queue.sources.json_object import json_object
from clip_queue.sources.left_out import PASSED, Passed
from clip_queue.sources.registry import FORMATS
from clip_queue.sources.source import Piece, Place, Planned, Row, Source, SourceError
from clip_queue.sources.storage import reason

SAMPLE_LINES = 1_000  # lines from which columns are inferred
MAX_NAMES = 10_000  # different names that are remembered
SAMPLE_BYTES = 64 * 2**20  # bytes of broken lines that are passed over before the first object


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
    passed: Passed = {}
    found = lines.files(source.url, FORMATS[source.format], passed)
    source = replace(source, storage={**source.storage, PASSED: passed, "root": root(source.url), HELD_AS: TEXT})
    objects = _objects(source, found)
    sample = list(islice(objects, sample_lines))
    if not sample:
        raise SourceError(f"{source.url}: no line at its beginning is a JSON object")
    source = _choose(source, chain(sample, objects), len(sample))
    source = replace(source, columns=with_wanted(source, infer(_own(source, row) for row in sample)))
    return source, lines.shards(source, found, shard_size, lines.line_marks)


def _choose(source: Source, rows: Iterable[dict[str, Any]], at_least: int) -> Source:
    """``source`` with its columns of images and texts, from the first rows.

    At least ``at_least`` rows are looked at, and more as long as there may still come a column that is looked for: the
    first captions may stand anywhere. One odd value makes no column useless; it is its row's error.
    """
    names: dict[str, bool] = {}  # whether a column can hold texts, by name
    useless: SourceError | None = None
    number = 0
    for number, row in enumerate(rows, 1):
        before = len(names), sum(names.values())
        for key, value in row.items():
            if len(names) < MAX_NAMES or key in names:
                names[key] = names.get(key, False) or _is_text(value)
        if number < at_least or (number > at_least and before == (len(names), sum(names.values()))):
            continue
        try:
            chosen = choose(source, names, *[[name for name, able in names.items() if able]] * 2)
        except SourceError as error:
            useless = error
            continue
        useless = None
        if (chosen.images or source.images is False) and (chosen.texts or source.texts is False):
            return chosen
    if useless is not None:
        raise useless
    return choose(source, names, *[[name for name, able in names.items() if able]] * 2)


def read(source: Source, pieces: list[Piece], settings: Settings) -> Iterator[Row]:
    """The rows of a shard."""
    return lines.read(source, pieces, settings, lines.lines, _parser(source))


def _parser(source: Source) -> Callable[[Table, int, bytes], Row]:
    """What makes a row of a line."""
    image, text = source.image_column or "", source.text_column or ""

    def parse(table: Table, number: int, line: bytes) -> Row:
        values = parsed(line, number)
        return table.row(number, conform(_own(source, values), source.columns), values.get(image), values.get(text))

    return parse


def find_image(source: Source, image_path: str, settings: Settings, place: Place | None = None) -> bytes:
    """The image of a row. Raises :class:`ClipError` or :class:`OSError`."""
    only = replace(source, texts=False, text_column=None, columns={}, storage={**source.storage, LEFT_OUT: {}})
    return lines.find_image(only, image_path, settings, lines.lines, _parser(only), place=place)


def parsed(line: bytes, number: int) -> dict[str, Any]:
    """A line's object. Raises :class:`BadInput` with the line's number, counted from 1."""
    return json_object(decoded(line, number).encode(), f"Line {number + 1}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))


def _own(source: Source, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a row that go into the source's own columns; of several captions, all: one of them is embedded."""
    return {
        key: value
        for key, value in values.items()
        if is_own(source, key) or (isinstance(value, list) and is_wanted(source, key))
    }


def _objects(source: Source, found: list[tuple[bytes, int]]) -> Iterator[dict[str, Any]]:
    """The objects of the files; broken lines are passed over, up to :data:`SAMPLE_BYTES` of them before the first."""
    passed: float = 0
    for path, _ in found:
        title = name(source.storage["root"], path)
        try:
            with open_text(source, path) as (file, end, _):
                for _, line in lines.lines(file, lines.first_byte(file, title), end):
                    if isinstance(line, bytes):
                        passed += len(line)
                        with suppress(BadInput):
                            yield parsed(line, 0)
                            passed = float("-inf")
                    if passed > SAMPLE_BYTES:
                        return
        except OSError as error:
            raise SourceError(f"{title} cannot be read: {reason(error)}") from error
