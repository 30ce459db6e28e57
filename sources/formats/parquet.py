"""Parquet and Arrow files that hold images, or paths or URLs of images, and texts.

To plan, only what tells their columns and rows is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import types

from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import (
    ALSO,
    BYTES,
    HELD_AS,
    LEFT_OUT,
    LIST,
    MAYBE,
    TEXT,
    check_image_root,
    choose,
    is_own,
    is_wanted,
    item_of,
    own_name,
)
from clip_queue.sources.discovery import containers, name, root
from clip_queue.sources.formats import row_groups
from clip_queue.sources.formats.arrow import NOTHING, is_list, kept, plain, widest
from clip_queue.sources.formats.row_groups import BATCH_ROWS, READ_ERRORS, in_words
from clip_queue.sources.formats.table import Table, changed, container_of, find_by_path, holds_text
from clip_queue.sources.image_references import MEMBERS
from clip_queue.sources.left_out import PASSED, Passed
from clip_queue.sources.looking import go_on
from clip_queue.sources.place import IMAGE
from clip_queue.sources.registry import FORMATS
from clip_queue.sources.source import IMAGES, BrokenContainer, Piece, Place, Planned, Row, Shard, Source, SourceError
from clip_queue.sources.storage import StoreAway, display, is_barred, opened, split

NAMED = 8  # columns that are suggested to be kept
THREADS = 8  # footers that are read at once

# How a column can hold images and texts: as BYTES, as a struct with bytes, as a struct that names a file, as TEXT, or
# not at all. A list of one of them has LIST before it.
STRUCT, NAMES, OTHER = "struct", "names", "other"

_Kinds = dict[str, tuple[str, str | None]]  # of each column: how it can hold them, and its type in the metadata


class _Footer(NamedTuple):
    rows: int
    kinds: _Kinds
    fault: str = ""  # why it could not be read
    empty: frozenset[str] = frozenset()  # columns that are null in every row, as far as the footer tells


def plan_shards(source: Source, shard_size: int, settings: Settings) -> Planned:  # noqa: ARG001 - every format has it
    """Shards of exactly ``shard_size`` rows. A file whose footer cannot be read is one row, which fails.

    Where a row has a list of images, each of them is a row of its own, and only reading tells how many there are.

    Raises:
        SourceError: there is no file, none can be read, they differ in their columns, or they hold nothing to embed.
    """
    passed: Passed = {}
    asked = source.images
    found = containers(source.url, FORMATS[source.format].suffixes, passed=passed)
    folder = root(source.url)
    caches = [path for path, _ in found if path.rpartition(b"/")[2].startswith(b"cache-")]
    if source.format == "arrow" and caches and len(caches) < len(found):
        raise SourceError(
            f"{display(caches[0])} is a cache of `datasets`: name the files to embed, as {folder}/data-*.arrow"
        )
    counts: list[tuple[int, str]] = []
    known: _Kinds = {}
    clashes: dict[str, str] = {}
    empty: frozenset[str] | None = None
    for (path, _), footer in zip(found, _footers(split(source.url)[0], found, source.format), strict=True):
        go_on()
        counts.append((1 if footer.fault else footer.rows, footer.fault))
        if not footer.fault:
            known = _merged(known, footer.kinds, name(folder, path), clashes) if known else footer.kinds
        if footer.rows:
            empty = footer.empty if empty is None else empty & footer.empty
    if not known:
        raise SourceError(
            f"{source.shown}: nothing there can be read as {source.format}: {counts[0][1] or 'no columns'}"
        )
    _check_clashes(source, known, clashes)
    able = [column for column, (holds, _) in known.items() if holds != OTHER and column not in (empty or ())]
    source = replace(source, storage={**source.storage, PASSED: passed, "root": folder})
    source = _chosen(source, known, able, found)
    own = {
        own_name(column): "string" if kind == NOTHING else kind
        for column, (holds, kind) in known.items()
        if kind is not None
        and is_wanted(source, column)
        and (
            is_own(source, column) or (column == source.text_column and holds == LIST + TEXT)
        )  # one of its texts is the caption
    }
    column, item = item_of(source.image_column or "", known)
    if clash := clashes.get(column) or clashes.get(source.text_column or ""):
        raise SourceError(f"{clash}, and it is to be embedded: embed these files apart, or choose another column")
    holds = known[column][0] if column in known else ""
    many = holds.startswith(LIST) and item is None
    others = {name: kind for name, (kind, _) in known.items() if name not in (column, source.text_column)}
    also = [name for name, kind in others.items() if source.images and kind.endswith(STRUCT)]
    maybe = [name for name, kind in others.items() if kind.endswith(BYTES)] if asked is not False else []
    if many:
        own[IMAGE] = "int64"
    storage = {**source.storage, HELD_AS: holds, ALSO: also, MAYBE: {IMAGES: maybe}}
    source = replace(source, columns=own, storage=storage)
    check_image_root(source)
    shards = _shards(found, counts, shard_size)
    return source, (Shard(shard.pieces, None) for shard in shards) if many else shards


def read(source: Source, pieces: list[Piece], settings: Settings, *, batch_rows: int = BATCH_ROWS) -> Iterator[Row]:
    """The rows of a shard; ``batch_rows``: the most rows in memory at once.

    Raises:
        SourceError: a file is not the one that was planned.
        StoreAway: the files' store is away or refuses them: no row is to blame.
    """
    for piece in pieces:
        table = Table(source, piece.path, settings)
        if piece.note:
            why = f"{table.name} could not be read when it was planned ({piece.note})"
            yield table.broken(piece.start, BrokenContainer(f"{why}: its rows are lost, how many is not known"))
            continue
        with ExitStack() as stack:
            try:
                handle, size = stack.enter_context(opened(table.protocol, piece.path))
                if size != piece.size:
                    raise changed(table)
                file = row_groups.table_file(handle, table.protocol, source.format)
            except READ_ERRORS as error:
                if is_barred(error):
                    raise StoreAway(in_words(error)) from error
                yield from table.lost(piece.start, piece.stop, f"cannot be read ({in_words(error)})")
                continue
            yield from row_groups.read(source, table, file, piece, batch_rows=batch_rows)


def recut(source: Source, path: bytes, sizes: Iterator[int]) -> Iterator[Piece]:
    """The rows of a file as it is now, in pieces. A file whose footer cannot be read is one row, which fails.

    Raises:
        SourceError: it cannot be looked at.
    """
    protocol, _ = split(source.url)
    footer = _footer(protocol, path, source.format)
    try:
        with opened(protocol, path) as (_, length):
            pass
    except OSError as error:
        raise SourceError(f"{display(path)} cannot be read: {in_words(error)}") from error
    at, rows = 0, 1 if footer.fault else footer.rows
    while at < rows:
        stop = min(rows, at + next(sizes))
        yield Piece(path, at, stop, length, footer.fault)
        at = stop


def find_image(source: Source, image_path: str, settings: Settings, place: Place | None = None) -> bytes:
    """The image of a row; if several rows have the same path beside their images, and ``place`` is not known, the first
    one's.

    Raises:
        ClipError: there is no such image, or it cannot be read.
        OSError: it cannot be read.
    """
    suffixes = FORMATS[source.format].suffixes
    if source.storage[HELD_AS] in (TEXT, LIST + TEXT) and container_of(source, image_path, suffixes) is None:
        return find_by_path(source, image_path, suffixes, settings, place)
    if place is not None and place.number is not None:
        image_path = f"{place.file}#{place.number}"
    only = replace(source, texts=False, text_column=None, columns={}, storage={**source.storage, LEFT_OUT: {}})
    try:
        rows = read(only, [_piece_of(source, image_path)], settings)
        row = next(islice(rows, place.image or 0 if place else 0, None), None)
    except pa.ArrowException as error:
        raise OSError(in_words(error)) from error
    if row is None:
        raise BadInput(f"the row {image_path} of {source.shown} has fewer images")
    if row.error is not None:
        raise row.error
    found = row.image() if callable(row.image) else row.image
    assert found is not None
    return found


def _piece_of(source: Source, image_path: str) -> Piece:
    """The row that has this ``image_path``: ``FILE#ROW``, or the path that its image has beside its bytes."""
    if not source.images:
        raise BadInput(f"{source.shown} was embedded without images")
    file, _, row = image_path.rpartition("#")
    found = _containers(source.url, FORMATS[source.format].suffixes)
    for path, size in found:
        if name(source.storage["root"], path) == file and row.isdecimal():
            return Piece(path, int(row), int(row) + 1, size)
    if source.storage[HELD_AS] in (STRUCT, NAMES):
        protocol, _ = split(source.url)
        for path, size in found:
            with opened(protocol, path) as (handle, _):
                at = row_groups.find_path(source, row_groups.table_file(handle, protocol, source.format), image_path)
            if at is not None:
                return Piece(path, at, at + 1, size)
    raise BadInput(f"no row of {source.shown} has the image path {image_path}")


def forget_files() -> None:
    """Look at the sources' files again when an image is asked for next."""
    _containers.cache_clear()


@lru_cache(maxsize=4)
def _containers(url: str, suffixes: tuple[str, ...]) -> list[tuple[bytes, int]]:
    return containers(url, suffixes)


# Planning


def _chosen(source: Source, known: _Kinds, able: list[str], found: list[tuple[bytes, int]]) -> Source:
    """``source`` with its columns of images and texts. A column of texts that is empty in every row is none."""
    typed = next((column for column in able if known[column][0] in (STRUCT, LIST + STRUCT)), None)
    texts = [column for column in able if known[column][0] in (BYTES, TEXT, LIST + TEXT)]
    lists = [column for column in able if known[column][0].startswith(LIST)]
    while True:
        chosen = choose(source, known, able, texts, typed=typed, lists=lists)
        if chosen.text_column is None or _has_texts(chosen, found):
            return chosen
        texts.remove(chosen.text_column)


def _has_texts(source: Source, found: list[tuple[bytes, int]]) -> bool:
    """Whether any row has a text; they are read up to there. Rows that cannot be read count as if they had."""
    protocol, _ = split(source.url)
    rows = 0
    for path, _ in found:
        try:
            with opened(protocol, path) as (handle, _):
                file = row_groups.table_file(handle, protocol, source.format)
                for values in row_groups.column(file, source.text_column):
                    rows += len(values)
                    if any(map(holds_text, values)):
                        return True
        except READ_ERRORS as error:
            if is_barred(error):
                raise SourceError(f"{display(path)} cannot be read: {in_words(error)}") from error
    return not rows


def _footers(protocol: str, found: list[tuple[bytes, int]], format: str) -> Iterator[_Footer]:
    """The footer of each file, in order."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="footers") as pool:
        waiting: deque[Future[_Footer]] = deque()
        for path, _ in found:
            waiting.append(pool.submit(_footer, protocol, path, format))
            if len(waiting) > 4 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _footer(protocol: str, path: bytes, format: str) -> _Footer:
    """A file's footer. Raises :class:`SourceError` if the store is away: the file would count as one row that fails."""
    try:
        with opened(protocol, path) as (handle, _):
            file = row_groups.table_file(handle, protocol, format)
            schema = file.schema_arrow
            if len(set(schema.names)) < len(schema.names):
                return _Footer(0, {}, "columns of the same name")
            kinds = {field.name: (_holds(field.type), kept(field.type)) for field in schema}
            able = {column for column, (holds, _) in kinds.items() if holds != OTHER}
            empty = _empty(file.metadata, able) if format == "parquet" else frozenset()
            return _Footer(file.metadata.num_rows, kinds, empty=empty)
    except READ_ERRORS as error:
        if is_barred(error):
            raise SourceError(f"{display(path)} cannot be read: {in_words(error)}") from error
        return _Footer(0, {}, in_words(error))


def _empty(about: Any, columns: set[str]) -> frozenset[str]:
    """Those of ``columns`` that hold nothing but nulls, by the statistics of a file's footer."""
    for group in map(about.row_group, range(about.num_row_groups)):
        for leaf in map(group.column, range(group.num_columns)):
            column = leaf.path_in_schema.partition(".")[0]
            if column in columns or leaf.path_in_schema in columns:
                statistics = leaf.statistics
                if not (statistics and statistics.has_null_count and statistics.null_count == leaf.num_values):
                    columns = columns - {column, leaf.path_in_schema}
        if not columns:
            break
    return frozenset(columns)


def _holds(kind: Any) -> str:
    """How a column can hold images and texts. Hugging Face keeps images as structs of bytes and path."""
    kind = plain(kind)
    if is_list(kind):
        holds = _holds(kind.value_type)
        return OTHER if holds == OTHER or holds.startswith(LIST) else LIST + holds
    if types.is_struct(kind):
        fields = {name: _holds(kind.field(name).type) for name in MEMBERS if kind.get_field_index(name) >= 0}
        return STRUCT if fields.get("bytes") == BYTES else NAMES if TEXT in fields.values() else OTHER
    return BYTES if types.is_binary(kind) else TEXT if types.is_string(kind) else OTHER


def _merged(known: _Kinds, more: _Kinds, title: str, clashes: dict[str, str]) -> _Kinds:
    """The columns of the files before, and of one more file, by the widest type: a file may lack columns of others.

    ``clashes`` gets those that are of two types without a wider one, or hold something else, and what they are; the
    metadata cannot have them.
    """
    out = dict(known)
    for column, here in more.items():
        there = known.get(column, here)
        kind = widest(there[1], here[1])
        holds = there[0] if here[1] == NOTHING else here[0] if there[1] == NOTHING else None
        if holds is None and (here[0] == there[0]):
            holds = here[0]
        if holds is None or (kind is None and (here[1], there[1]) != (None, None)):
            is_here, was = (held if here[1] == there[1] else kind or held for held, kind in (here, there))
            clashes.setdefault(column, f"column {column!r} of {title} is {is_here}, in the files before it {was}")
            holds, kind = here[0] if there[0] == OTHER else there[0], None
        out[column] = holds, kind
    return out


def _check_clashes(source: Source, known: _Kinds, clashes: dict[str, str]) -> None:
    """Raise :class:`SourceError` if the metadata are to have a column whose types cannot be united."""
    if clash := next((clash for column, clash in clashes.items() if is_wanted(source, column)), None):
        rest = [column for column, (_, kind) in known.items() if kind is not None and is_wanted(source, column)]
        named = ",".join(rest[:NAMED]) + (",…" if len(rest) > NAMED else "")
        or_without = f", or leave it out by --columns {named}" if rest else ""
        raise SourceError(f"{clash}, which no type unites: embed these files apart{or_without}")


def _shards(found: list[tuple[bytes, int]], footers: list[tuple[int, str]], size: int) -> Iterator[Shard]:
    pieces: list[Piece] = []
    room = size
    for (path, length), (rows, fault) in zip(found, footers, strict=True):
        at = 0
        while at < rows:
            stop = min(rows, at + room)
            pieces.append(Piece(path, at, stop, length, fault))
            room -= stop - at
            at = stop
            if not room:
                yield Shard(pieces, size)
                pieces, room = [], size
    if pieces:
        yield Shard(pieces, size - room)
