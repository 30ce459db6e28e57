"""Rows' places in the metadata: the columns that tell which file a row comes from, and where it stands there.

A row's ``image_path`` need not be unique: two folders' tables each have their ``0.png``. The plan of a run says whether
its metadata have the columns of this module: an output that release 0.1.0 began has none, and gets none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from clip_queue.sources.source import Place, Row, Source

FILE, ROW, IMAGE = "source_file", "source_row", "source_image"  # columns of the metadata


def with_places(source: Source) -> Source:
    """A source whose rows' places become columns of the metadata."""
    return replace(source, columns={**source.columns, FILE: "string", ROW: "int64"})


def placed(source: Source, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows, with their places in the columns that ``source`` has for them."""
    names = (FILE, ROW, IMAGE)
    for row in rows:
        if row.place is not None:
            found = zip(names, row.place, strict=True)
            row.columns.update((name, value) for name, value in found if name in source.columns)
        yield row


def place_of(columns: Mapping[str, Any]) -> Place | None:
    """The place that a row's metadata tell; None: they tell none."""
    file, number, image = columns.get(FILE), columns.get(ROW), columns.get(IMAGE)
    if not isinstance(file, str):
        return None
    return Place(file, number if isinstance(number, int) else None, image if isinstance(image, int) else None)
