"""A plan made anew for a source that has changed: shards keep what they had, and what is new makes shards at the end.

A shard that has lost something, or whose files have changed, is left in its place with what there is now. So a file
that is added in the middle costs nothing else. Which rows share a shard, and with it a forward pass, depends on the
past.

Of a table the rows keep their shards by their numbers: a file that has grown keeps its first rows where they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.changes import (
    GONE,
    NEW,
    SAME,
    Changes,
    Located,
    SourceFile,
    compare,
    is_unlisted,
)
from clip_queue.sources.discovery import name, root
from clip_queue.sources.formats.folder import image_piece
from clip_queue.sources.formats.image_files import folder_order
from clip_queue.sources.left_out import PASSED
from clip_queue.sources.registry import FORMATS, IMAGE_FOLDER, READING
from clip_queue.sources.source import Piece, Shard, Source, SourceError
from clip_queue.sources.storage import display, split

_ROWS = re.compile(r"\d+\+(\d+)")  # of a piece of lines: the number of its first row, and how many there are
_OF_FILES = ("header", "others", PASSED)  # in Source.storage, what is known of files and not of the whole source


class Remade(NamedTuple):
    """A shard as it is to be. ``again``: it is to be done again; ``same_rows``: not if its rows read as they did."""

    shard: Shard
    again: bool = False
    same_rows: bool = False


class Replan:
    """Takes a plan over into one for the source as it is now. First :meth:`new_shards` has to be read to its end; then
    :attr:`changes` are known, and :meth:`old_shards`.

    Memory grows with what has changed, not with the source.
    """

    def __init__(
        self,
        source: Source,
        planned: Iterable[Located],
        since: float,
        shard_size: int,
        settings: Settings,
        *,
        counted: bool,
    ) -> None:
        """A source as it was completed, and its pieces in the order of their files.

        Args:
            since: as :func:`clip_queue.sources.changes.compare` has it.
            shard_size: rows of a new shard.
            counted: whether the plan tells how many rows a shard has.

        Raises:
            SourceError: the source has other columns now, or cannot be looked at.
        """
        self.source = completed(source, settings)
        self.changes = Changes()
        self._planned, self._since, self._size, self._counted = planned, since, shard_size, counted
        self._remade: dict[
            int, dict[int, Piece | None]
        ] = {}  # by shard and place in it: pieces as they are now; None: gone

    @property
    def is_same(self) -> bool:
        """Whether the plan is still the source's."""
        return not self._remade and not self.changes.names

    def new_shards(self) -> Iterator[Shard]:
        """The shards of what is new. Raises :class:`SourceError` if the source cannot be listed or read."""
        if self.source.format == IMAGE_FOLDER:
            return self._cut(self._images())
        if not FORMATS[self.source.format].has_rows:
            return (Shard([piece], None) for piece in self._containers())
        room = _Room(self._size)
        return self._cut(self._rows(room), room)

    def old_shards(self, shards: Iterable[Shard]) -> Iterator[Remade]:
        """The plan's ``shards``, in order, as they are to be."""
        for number, shard in enumerate(shards):
            here = self._remade.get(number)
            if here is None:
                yield Remade(shard)
                continue
            pieces = [here.get(index, piece) for index, piece in enumerate(shard.pieces)]
            left = [piece for piece in pieces if piece is not None]
            same = FORMATS[self.source.format].has_rows and len(left) == len(pieces)
            same = same and all(rows_of(a) == rows_of(b) for a, b in zip(left, shard.pieces, strict=True))
            yield Remade(self._shard(left), again=True, same_rows=same)

    def _shard(self, pieces: list[Piece]) -> Shard:
        return Shard(pieces, sum(map(rows_of, pieces)) if self._counted else None)

    def _cut(self, pieces: Iterator[Piece], room: _Room | None = None) -> Iterator[Shard]:
        """Shards of pieces that come one after the other, none of them larger than the room that is left."""
        room, held = room or _Room(self._size), list[Piece]()
        for piece in pieces:
            held.append(piece)
            room.left -= rows_of(piece)
            if not room.left:
                yield self._shard(held)
                held, room.left = [], self._size
        if held:
            yield self._shard(held)

    def _note(self, places: Iterable[Located], now: Iterable[Piece | None]) -> None:
        for located, piece in zip(places, now, strict=False):
            self._remade.setdefault(located.shard, {})[located.at] = piece

    def _compared(
        self, planned: Iterable[Located], faults: dict[bytes, str] | None = None
    ) -> Iterator[tuple[str, SourceFile]]:
        """Every file that is not the same, and tables that could not be read before; those that are gone are noted."""
        folder = root(self.source.url)
        for kind, then, here in compare(self.source, planned, self._since, faults):
            file = then or here
            assert file is not None
            if kind == SAME and not (file.pieces and _was_unreadable(file.pieces[0].piece, self.source)):
                continue
            if kind != SAME:
                self.changes.count(kind, name(folder, file.path))
            if kind == GONE:
                self._note(file.pieces, [None] * len(file.pieces))
            else:
                size, caption = (here.size, here.caption) if here else (-1, "")
                yield kind, SourceFile(file.path, size, caption, then.pieces if then else ())

    def _images(self) -> Iterator[Piece]:
        protocol, unlisted, faults = split(self.source.url)[0], list[Located](), dict[bytes, str]()
        for kind, file in self._compared(_noting(self._planned, unlisted), faults):
            piece = image_piece(protocol, file.path, file.size, file.caption)
            if kind == NEW:
                yield piece
            else:
                self._note(file.pieces, [piece])
        known = {located.piece.path for located in unlisted}
        if new := next((path for path in faults if path not in known), None):
            raise SourceError(
                f"{display(new)} cannot be listed: {faults[new]}. Nothing of it would be left in the output: try again "
                "once it can be"
            )
        self._note((located for located in unlisted if located.piece.path not in faults), iter(lambda: None, 0))

    def _containers(self) -> Iterator[Piece]:
        for kind, file in self._compared(self._planned):
            piece = Piece(file.path, size=file.size)
            if kind == NEW:
                yield piece
            else:
                self._note(file.pieces, [piece])

    def _rows(self, room: _Room) -> Iterator[Piece]:
        """The new rows of tables; each row that was there keeps its shard, by its number in its file."""
        for kind, file in self._compared(self._planned):
            sizes = chain((rows_of(located.piece) for located in file.pieces), room)
            at = 0
            for piece in registry.recut(self.source, file.path, sizes):
                if at == len(file.pieces):
                    yield piece
                    continue
                if kind != SAME or piece != file.pieces[at].piece:
                    self._note(file.pieces[at : at + 1], [piece])
                at += 1
            self._note(file.pieces[at:], iter(lambda: None, 0))


class _Room:
    """The rows that a shard has room for, asked for again and again."""

    def __init__(self, size: int) -> None:
        self.left = size

    def __iter__(self) -> Iterator[int]:
        while True:
            yield self.left


def rows_of(piece: Piece) -> int:
    """The rows of a piece: an image, or a range of a table's rows."""
    if piece.start < 0:
        return 1
    lines = _ROWS.fullmatch(piece.note)
    return int(lines[1]) if lines else piece.stop - piece.start


def order(source: Source) -> Callable[[bytes], Any]:
    """What a source's files are sorted by."""
    return folder_order if source.format == IMAGE_FOLDER else bytes


def completed(source: Source, settings: Settings) -> Source:
    """A source as it was completed, with what reading it needs to know of its files as they are now. Columns that are
    new are left out: those of the output stay what they are.

    Raises:
        SourceError: a column is of another type now, or the source cannot be looked at.
    """
    if source.format not in ("csv", "parquet", "arrow"):  # of the others no more is needed than of each file itself
        return source
    asked = {option: value for option, value in source.storage.items() if option in READING}
    now, _ = registry.plan_shards(replace(source, columns={}, storage=asked), 1, settings)
    if source.format != "csv":
        from clip_queue.sources.formats.arrow import widest  # needs pyarrow

        for column, kind in source.columns.items():
            here = now.columns.get(column, kind)
            if widest(kind, here) != kind:
                raise SourceError(
                    f"column {column!r} is {here} now, and {kind} in the output: choose another output to embed the "
                    "source as it is now"
                )
    return replace(source, storage={**source.storage, **{k: now.storage[k] for k in _OF_FILES if k in now.storage}})


def _noting(planned: Iterable[Located], unlisted: list[Located]) -> Iterator[Located]:
    for located in planned:
        if is_unlisted(located.piece):
            unlisted.append(located)
        yield located


def _was_unreadable(piece: Piece, source: Source) -> bool:
    """Whether a piece stands for a table whose footer could not be read."""
    return FORMATS[source.format].has_rows and bool(piece.note) and _ROWS.fullmatch(piece.note) is None
