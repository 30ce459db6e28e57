"""The types of a source: a source is cut into shards, a shard into pieces, and pieces are read row by row.

A format is a module that offers three functions. Its entry is in :data:`clip_queue.sources.registry.FORMATS`.

``plan_shards(source, shard_size, settings)`` looks at the source once. It returns the source completed (its columns,
whether it has images and texts) and an iterator of :class:`Shard`. The iterator is lazy: a plan of a hundred million
rows is never in memory.

``read(source, pieces, settings)`` yields the rows of a shard, in order, one at a time. If a row cannot be read, the row
carries the error. If a container cannot be read, an error row says how many rows are lost, where that can be known.

``find_image(source, image_path, settings, place)`` returns the encoded image of the row that has this ``image_path``;
``place`` tells rows with the same one apart, and is None where it is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.fields import known_fields

IMAGE_HALF, TEXT_HALF, COLUMNS = "image", "text", "columns"  # parts of a row that can be at fault
IMAGES, TEXTS = "images", "texts"  # what can be embedded of a row

MOST_SHOWN = 400  # characters of a source's URL in messages


class SourceError(BadInput):
    """The source as a whole cannot be embedded; the message says what to do."""

    code = "source"


class SourceAway(SourceError):
    """The source's store does not answer, or refuses the login. What was asked for is not to blame."""

    code = "source_away"


class BrokenContainer(ClipError):
    """A file that holds many rows is broken; the message says how many rows are lost."""

    code, status = "broken_container", 400


def shown(url: str) -> str:
    """A path or URL for messages: one that names many files is shortened."""
    return url if len(url) <= MOST_SHOWN else f"{url[: MOST_SHOWN // 2]} … {url[-MOST_SHOWN // 4 :]}"


@dataclass(frozen=True)
class Source:
    """A source as the caller asked for it, then as a format's ``plan_shards`` completed it.

    ``url`` is an absolute path, a glob, a brace expression, or a URL that fsspec opens. ``format`` is a name in
    :data:`clip_queue.sources.registry.FORMATS`. ``columns`` are the source's own columns that go into the metadata, in
    order, without ``image_path`` and ``caption``: the name, and the type as pyarrow spells it (``str(pa.DataType)``).
    """

    url: str
    format: str
    image_column: str | None = None  # tables: encoded images, paths (relative to the table's folder) or URLs
    text_column: str | None = None
    images: bool | None = None  # None: if the source has any
    texts: bool | None = None
    columns: dict[str, str] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)  # JSON values that plan_shards passes on to read

    @property
    def shown(self) -> str:
        """``url`` for messages."""
        return shown(self.url)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Source:
        """The source that :meth:`to_json` describes. Keys of a later release are ignored."""
        return cls(**known_fields(cls, raw))


class Piece(NamedTuple):
    """A part of a shard: an image file, a tar, or a range of a table's rows or bytes.

    ``path`` is absolute in its file system, as bytes (:func:`os.fsencode`), because a file's name need not be UTF-8.
    ``size`` is the file's size in bytes when it was planned, -1 where unknown. A container of another size has changed.
    """

    path: bytes
    start: int = -1
    stop: int = -1
    size: int = -1
    note: str = ""  # a text that plan_shards passes on to read


@dataclass(frozen=True)
class Shard:
    """The pieces of a shard and its number of rows."""

    pieces: list[Piece]
    rows: int | None  # None: only reading tells (tars)


class Place(NamedTuple):
    """Where a row comes from.

    ``file`` is relative to the source's root. ``number`` counts the file's rows from 0; None: the file is an image.
    ``image`` counts the images of a row that holds several, from 0.
    """

    file: str
    number: int | None = None
    image: int | None = None


@dataclass(slots=True)
class Row:
    """A row of a source.

    ``columns`` holds ``image_path``, ``caption`` (None where the row has none) and the source's own columns. ``image``
    is the encoded image, or a function that loads it. The function runs in a thread of a pool and raises
    :class:`ClipError` or :class:`OSError`. ``error`` says why the row as a whole could not be read; the rest may then
    be missing. ``faults`` say what is wrong with one half of it (:data:`IMAGE_HALF`, :data:`TEXT_HALF`) or with its
    columns: the other half is embedded all the same. ``place`` is where the row comes from. ``left_out`` is what it has
    that is not embedded: :data:`IMAGES`, :data:`TEXTS`.
    """

    columns: dict[str, Any]
    image: bytes | Callable[[], bytes] | None = None
    text: str | None = None
    error: ClipError | None = None
    faults: dict[str, ClipError] = field(default_factory=dict)
    place: Place | None = None
    left_out: tuple[str, ...] = ()


Planned = tuple[Source, Iterator[Shard]]
