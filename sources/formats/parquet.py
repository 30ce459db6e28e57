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
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import types

from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import choose, is_own, own_name
from clip_queue.sources.discovery import containers, name, root
from clip_queue.sources.formats import row_groups
from clip_queue.sources.formats.arrow import NOTHING, kept, plain, widest
from clip_queue.sources.formats.row_groups import BATCH_ROWS, READ_ERRORS, in_words
from clip_queue.sources.formats.table import Table, changed, container_of, find_by_path
from clip_queue.sources.registry import FORMATS
from clip_queue.sources.source import BrokenContainer, Piece, Planned, Row, Shard, Source, SourceError
from clip_queue.sources.storage import StoreAway, display, is_barred, opened, split

THREADS = 8  # footers that are read at once

# How a column can hold images and texts: as bytes, a struct of bytes and path, text, a list of texts, or not at all.
BYTES, STRUCT, TEXT, TEXTS, OTHER = "bytes", "struct", "text", "texts", "other"

_Kinds = dict[str, tuple[str, str | None]]  # of each column: how it can hold them, and its type in the metadata


class _Footer(NamedTuple):
    rows: int
    kinds: _Kinds
    fault: str = ""  # why it could not be read


def plan_shards(source: Source, shard_size: int, settings: Settings) -> Planned:  # noqa: ARG001 - every format has it
    """Shards of exactly ``shard_size`` rows. A file whose footer cannot be read is one row, which fails.

    Raises:
        SourceError: there is no file, none can be read, they differ in their columns, or they hold nothing to embed.
    """
    found = containers(source.url, FORMATS[source.format].suffixes)
    folder = root(source.url)
    caches = [path for path, _ in found if path.rpartition(b"/")[2].startswith(b"cache-")]
    if source.format == "arrow" and caches and len(caches) < len(found):
        raise SourceError(
            f"{display(caches[0])} is a cache of `datasets`: name the files to embed, as {folder}/data-*.arrow"
        )
    counts: list[tuple[int, str]] = []
    known: _Kinds = {}
    for (path, _), footer in zip(found, _footers(split(source.url)[0], found, source.format), strict=True):
        counts.append((1 if footer.fault else footer.rows, footer.fault))
        if not footer.fault:
            known = _merged(known, footer.kinds, name(folder, path)) if known else footer.kinds
    if not known:
        raise SourceError(f"{source.url}: nothing there can be read as {source.format}: {counts[0][1] or 'no columns'}")
    able = [column for column, (holds, _) in known.items() if holds not in (TEXTS, OTHER)]
    typed = next((column for column, (holds, _) in known.items() if holds == STRUCT), None)
    texts = [column for column, (holds, _) in known.items() if holds in (BYTES, TEXT, TEXTS)]
    source = choose(source, known, able, texts, typed=typed)
    own = {
        own_name(column): "string" if kind == NOTHING else kind
        for column, (holds, kind) in known.items()
        if kind is not None and (is_own(source, column) or holds == TEXTS)  # one of its texts is the caption
    }
    holds = known[source.image_column][0] if source.image_column else ""
    source = replace(source, columns=own, storage={**source.storage, "root": folder, "image": holds})
    return source, _shards(found, counts, shard_size)


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


def find_image(source: Source, image_path: str, settings: Settings) -> bytes:
    """The image of a row; if several rows have the same path beside their images, the first one's.

    Raises:
        ClipError: there is no such image, or it cannot be read.
        OSError: it cannot be read.
    """
    suffixes = FORMATS[source.format].suffixes
    if source.storage["image"] == TEXT and container_of(source, image_path, suffixes) is None:
        return find_by_path(source, image_path, suffixes, settings)
    only = replace(source, texts=False, text_column=None, columns={})
    try:
        row = next(read(only, [_piece_of(source, image_path)], settings))
    except pa.ArrowException as error:
        raise OSError(in_words(error)) from error
    if row.error is not None:
        raise row.error
    found = row.image() if callable(row.image) else row.image
    assert found is not None
    return found


def _piece_of(source: Source, image_path: str) -> Piece:
    """The row that has this ``image_path``: ``FILE#ROW``, or the path that its image has beside its bytes."""
    if not source.images:
        raise BadInput(f"{source.url} was embedded without images")
    file, _, row = image_path.rpartition("#")
    found = _containers(source.url, FORMATS[source.format].suffixes)
    for path, size in found:
        if name(source.storage["root"], path) == file and row.isdecimal():
            return Piece(path, int(row), int(row) + 1, size)
    if source.storage["image"] == STRUCT:
        protocol, _ = split(source.url)
        for path, size in found:
            with opened(protocol, path) as (handle, _):
                at = row_groups.find_path(source, row_groups.table_file(handle, protocol, source.format), image_path)
            if at is not None:
                return Piece(path, at, at + 1, size)
    raise BadInput(f"no row of {source.url} has the image path {image_path}")


@lru_cache(maxsize=4)
def _containers(url: str, suffixes: tuple[str, ...]) -> list[tuple[bytes, int]]:
    return containers(url, suffixes)


# Planning


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
            return _Footer(
                file.metadata.num_rows, {field.name: (_holds(field.type), kept(field.type)) for field in schema}
            )
    except READ_ERRORS as error:
        if is_barred(error):
            raise SourceError(f"{display(path)} cannot be read: {in_words(error)}") from error
        return _Footer(0, {}, in_words(error))


def _holds(kind: Any) -> str:
    """How a column can hold images and texts. Hugging Face keeps images as structs of bytes and path."""
    kind = plain(kind)
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return STRUCT if index >= 0 and types.is_binary(plain(kind.field(index).type)) else OTHER
    if types.is_list(kind) or types.is_large_list(kind):
        return TEXTS if types.is_string(plain(kind.value_type)) else OTHER
    return BYTES if types.is_binary(kind) else TEXT if types.is_string(kind) else OTHER


def _merged(known: _Kinds, more: _Kinds, title: str) -> _Kinds:
    """The columns of the files before, and of one more file, by the widest type: a file may lack columns of others.

    Raises:
        SourceError: a column is of two types that have no wider one, or holds something else.
    """
    out = dict(known)
    for column, here in more.items():
        there = known.get(column, here)
        kind = widest(there[1], here[1])
        holds = there[0] if here[1] == NOTHING else here[0] if there[1] == NOTHING else None
        if holds is None and (here[0] == there[0]):
            holds = here[0]
        if holds is None or (kind is None and (here[1], there[1]) != (None, None)):
            raise SourceError(
                f"column {column!r} of {title} is {here[1] or here[0]}, in the files before it {there[1] or there[0]}"
            )
        out[column] = holds, kind
    return out


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
