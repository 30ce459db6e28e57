"""JSON Lines: each line is an object; or a JSON array of objects.

Two of its values are a text and an image's path or URL, or a list of them; the rest are columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import (
    HELD_AS,
    LEFT_OUT,
    LIST,
    TEXT,
    check_image_root,
    choose,
    conform,
    infer,
    is_own,
    is_wanted,
    item_of,
    name_in,
    with_wanted,
)
from clip_queue.sources.discovery import root
from clip_queue.sources.formats import lines
from clip_queue.sources.formats.table import Table
from clip_queue.sources.formats.text import decoded
from clip_queue.sources.image_references import can_be_image, image_in
from clip_queue.sources.json_object import json_object
from clip_queue.sources.left_out import PASSED, Passed
from clip_queue.sources.place import IMAGE
from clip_queue.sources.registry import FORMATS
from clip_queue.sources.source import Piece, Place, Planned, Row, Shard, Source, SourceError

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

    Where they have lists of images, each image is a row of its own, and only reading tells how many there are.

    Raises:
        SourceError: there is no file, one cannot be read, or they hold nothing to embed.
    """
    passed: Passed = {}
    found = lines.files(source.url, FORMATS[source.format], passed)
    source = replace(source, storage={**source.storage, PASSED: passed, "root": root(source.url), HELD_AS: TEXT})
    objects = _objects(source, found)
    sample = list(islice(objects, sample_lines))
    if not sample:
        hint = " (one that is an array is read with --format json)" if source.format == "jsonl" else ""
        raise SourceError(f"{source.shown}: no line at its beginning is a JSON object{hint}")
    source, many = _choose(source, chain(sample, objects), len(sample))
    check_image_root(source)
    columns = with_wanted(source, infer(_own(source, row) for row in sample))
    shards = lines.shards(source, found, shard_size, lines.line_marks)
    if not many:
        return replace(source, columns=columns), shards
    source = replace(source, columns={**columns, IMAGE: "int64"}, storage={**source.storage, HELD_AS: LIST + TEXT})
    return source, (Shard(shard.pieces, None) for shard in shards)


def _choose(source: Source, rows: Iterable[dict[str, Any]], at_least: int) -> tuple[Source, bool]:
    """``source`` with its columns of images and texts, from the first rows, and whether all images of lists are meant.

    At least ``at_least`` rows are looked at, and more as long as there may still come a column that is looked for: the
    first captions may stand anywhere. One odd value makes no column useless; it is its row's error.
    """
    names: dict[str, _Able] = {}
    useless: SourceError | None = None

    def chosen() -> Source:
        images, texts = ([name for name, able in names.items() if able[kind]] for kind in range(2))
        return choose(source, names, images, texts, lists=images)

    def of_lists(chosen: Source) -> tuple[Source, bool]:
        return chosen, chosen.image_column in names and names[chosen.image_column].lists

    for number, row in enumerate(rows, 1):
        news = False
        for key, value in row.items():
            if len(names) < MAX_NAMES or key in names:
                before = names.get(key)
                if before is None or not before.settled(value):  # most are, and there may be many
                    names[key] = _able(value, before)
                    news |= names[key] != before
        if number < at_least or (number > at_least and not news):
            continue
        try:
            found = chosen()
        except SourceError as error:
            useless = error
            continue
        useless = None
        if (found.images or source.images is False) and (found.texts or source.texts is False):
            return of_lists(found)
    if useless is not None:
        raise useless
    return of_lists(chosen())


class _Able(NamedTuple):
    """Whether a column can hold images and texts, and whether it holds lists of images."""

    images: bool = False
    texts: bool = False
    lists: bool = False

    def settled(self, value: object) -> bool:
        """Whether one more value tells nothing more."""
        return not isinstance(value, str | list | dict) or (self.images and self.texts and not isinstance(value, list))


def _able(value: object, before: _Able | None) -> _Able:
    """What a column can hold, by one more value."""
    images, texts, lists = before or _Able()
    items = value if isinstance(value, list) else [value]
    return _Able(
        images or can_be_image(value),
        texts or any(isinstance(each, str) and each.strip() for each in items),
        lists or (isinstance(value, list) and can_be_image(value)),
    )


def read(source: Source, pieces: list[Piece], settings: Settings) -> Iterator[Row]:
    """The rows of a shard."""
    return lines.read(source, pieces, settings, lines.lines, _parser(source))


def _parser(source: Source) -> lines.Parse:
    """What makes rows of a line."""
    renamed = partial(name_in, source)
    text, many = source.text_column or "", source.storage.get(HELD_AS) == LIST + TEXT

    def parse(table: Table, number: int, line: bytes) -> list[Row]:
        values = parsed(source, line, number)
        column, item = item_of(source.image_column or "", values)
        image, own = values.get(column), conform(_own(source, values), source.columns, renamed)
        several = _images(image, item, many=many)
        return [table.row(number, own, image_in(each), values.get(text), item=n) for each, n in several]

    return parse


def recut(source: Source, path: bytes, sizes: Iterator[int]) -> Iterator[Piece]:
    """The lines of a file as it is now, in pieces."""
    return lines.recut(source, path, sizes, lines.line_marks)


def _images(value: Any, item: int | None, *, many: bool) -> list[tuple[Any, int | None]]:
    """A row's images, numbered if each is a row; a row without any has one that is None."""
    if not isinstance(value, list) or (item is None and not many and len(value) > 1):
        return [(value, None)]
    if many:
        return [(each, n) for n, each in enumerate(value)] or [(None, None)]
    return [(next(islice(value, item or 0, None), None), None)]


def find_image(source: Source, image_path: str, settings: Settings, place: Place | None = None) -> bytes:
    """The image of a row. Raises :class:`ClipError` or :class:`OSError`."""
    only = replace(source, texts=False, text_column=None, columns={}, storage={**source.storage, LEFT_OUT: {}})
    return lines.find_image(only, image_path, settings, lines.lines, _parser(only), place=place)


def parsed(source: Source, line: bytes, number: int) -> dict[str, Any]:
    """A line's object. Raises :class:`BadInput` with the line's number, counted from 1."""
    return json_object(decoded(source, line, number).encode(), f"Line {number + 1}")


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
    for _, number, line in lines.rows(source, found, lines.lines):
        passed += len(line)
        with suppress(BadInput):
            yield parsed(source, line, number)
            passed = float("-inf")
        if passed > SAMPLE_BYTES:
            return
