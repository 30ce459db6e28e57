"""Rows' places in the metadata: the columns that tell which file a row comes from, and where it stands there.

A row's ``image_path`` need not be unique: two folders' tables each have their ``0.png``. The plan of a run says whether
its metadata have the columns of this module: an output that release 0.1.0 began has none, and gets none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from clip_queue.sources.columns import PLACES
from clip_queue.sources.source import Place, Row, Source

COLUMNS = FILE, ROW, IMAGE = "source_file", "source_row", "source_image"  # of the metadata


def with_places(source: Source) -> Source:
    """A source whose rows' places become columns of the metadata."""
    columns, storage = {**source.columns, FILE: "string", ROW: "int64"}, {**source.storage, PLACES: True}
    return replace(source, columns=columns, storage=storage)


def has_places(source: Source) -> bool:
    """Whether the metadata have the columns. In an output that release 0.1.0 began, such names are the source's own."""
    return bool(source.storage.get(PLACES))


def placed(source: Source, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows, with their places in the columns that ``source`` has for them."""
    wanted, several = has_places(source), IMAGE in source.columns
    for row in rows:
        if wanted and row.place is not None:
            row.columns[FILE], row.columns[ROW] = row.place.file, row.place.number
            if several:
                row.columns[IMAGE] = row.place.image
        yield row


def place_of(source: Source, columns: Mapping[str, Any]) -> Place | None:
    """The place that a row's metadata tell; None: those of this source tell none."""
    file, number, image = (columns.get(name) for name in COLUMNS)
    if not has_places(source) or not isinstance(file, str):
        return None
    return Place(file, number, image if IMAGE in source.columns else None)
