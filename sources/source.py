"""What is embedded: a source, cut into shards of pieces, read row by row.

Each format is a module with two functions, registered in :data:`clip_queue.sources.reader.FORMATS`:

``plan(source, shard_size)`` looks at the source once and returns it completed (columns, whether it has images and
texts), with the pieces of each shard, lazily: a plan of a hundred million rows is never in memory.

``read(source, pieces)`` yields the rows of a shard, in order, one at a time. What cannot be read of a row is that row's
error; what cannot be read of a container is an error row that says how many rows are lost, where that can be known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from clip_queue.shared.errors import BadInput, ClipError


class Format(StrEnum):
    FOLDER = "folder"  # pictures, with or without captions NAME.txt beside them
    WEBDATASET = "webdataset"  # tars whose members NAME.jpg, NAME.txt, NAME.json make a row
    PARQUET = "parquet"
    TEXT = "text"  # a line a text
    CSV = "csv"
    JSONL = "jsonl"


class SourceError(BadInput):
    """The source as a whole cannot be embedded; the message says what to do."""

    code = "source"


class SourceAway(SourceError):
    """The source's store does not answer, or not now, or lets nobody in: no fault of what was asked for."""

    code = "source_away"


class BrokenContainer(ClipError):
    """A file that holds many rows is broken; the message says how many of them that cost."""

    code, status = "broken_container", 400


@dataclass(frozen=True)
class Source:
    """A source as it was asked for, then (by a format's ``plan``) completed.

    ``url`` is an absolute path, a glob or brace expression, or whatever fsspec opens. ``columns`` are the source's
    own columns that go into the metadata, by name, as pyarrow spells their types (``str(pa.DataType)``), in order,
    without ``image_path`` and ``caption``.
    """

    url: str
    format: Format
    image_column: str | None = None  # tables: encoded pictures, paths (relative to the table's folder) or URLs
    text_column: str | None = None
    images: bool | None = None  # None: as the source has them
    texts: bool | None = None
    columns: dict[str, str] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)  # what a format's plan wants its read to know; JSON

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Source:
        return cls(**{**raw, "format": Format(raw["format"])})


class Piece(NamedTuple):
    """A part of a shard: a picture's file, a tar, or a range of a table's rows or bytes.

    ``path`` is absolute in its file system, as bytes (:func:`os.fsencode`), since a file's name need not be UTF-8.
    ``size`` is the file's bytes when it was planned, -1 where unknown: a container of another size has changed.
    """

    path: bytes
    start: int = -1
    stop: int = -1
    size: int = -1
    note: str = ""  # what the format wants its read to know


@dataclass(frozen=True)
class ShardPlan:
    pieces: list[Piece]
    rows: int | None  # None: only reading tells (tars)


@dataclass(slots=True)
class Row:
    """A row of a source. ``columns``: ``image_path`` and ``caption`` (None where it has none), and the source's own.

    ``image`` is the encoded picture, or how to get it: called in a thread of a pool, raising :class:`ClipError` or
    :class:`OSError`. ``error``: what could not be read of it; then the rest may be missing.
    """

    columns: dict[str, Any]
    image: bytes | Callable[[], bytes] | None = None
    text: str | None = None
    error: ClipError | None = None


Planned = tuple[Source, Iterator[ShardPlan]]
