"""The rows of a parquet file, streamed in batches that are small even if a row group is larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from clip_queue.sources.columns import LEFT_OUT, item_of, name_in
from clip_queue.sources.formats.arrow import is_list, plain, texts, values
from clip_queue.sources.formats.arrow_files import ArrowFile
from clip_queue.sources.formats.table import Table, changed
from clip_queue.sources.image_references import MEMBERS
from clip_queue.sources.source import IMAGES, Piece, Row, Source
from clip_queue.sources.storage import LOCAL, StoreAway, is_barred, reason

BATCH_ROWS = 1024  # rows in memory at once
BATCH_BYTES = 8 * 2**20  # fewer rows, if these would have more bytes than that
_Items = list[tuple[Any, str | None, int | None]]  # a row's images, each with its path and its number

BUFFER, REMOTE_BUFFER = 2**20, 2**22  # bytes that are read of a column at once; without, all of a row group would be

# What pyarrow raises where a file is broken or cannot be read. A column's name may not be UTF-8 in a broken footer.
READ_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)


def table_file(handle: Any, protocol: str, format: str) -> Any:
    """A parquet or Arrow file, from an open file. Raises one of :data:`READ_ERRORS`."""
    if format == "arrow":
        return ArrowFile(handle, protocol)
    buffer = BUFFER if protocol == LOCAL else REMOTE_BUFFER
    return pq.ParquetFile(handle, buffer_size=buffer, pre_buffer=False, page_checksum_verification=True)


def in_words(error: Exception) -> str:
    """One of :data:`READ_ERRORS` as a message."""
    return str(error).partition("\n")[0][:200] if isinstance(error, pa.ArrowException) else reason(error)


def read(source: Source, table: Table, file: Any, piece: Piece, *, batch_rows: int = BATCH_ROWS) -> Iterator[Row]:
    """The rows of a range. If a row group breaks, the rows of it that are not read yet fail.

    Args:
        file: the parquet file, from :func:`table_file`.
        batch_rows: the most rows in memory at once.

    Raises:
        SourceError: the file is not the one that was planned.
        StoreAway: the file's store is away or refuses it: no row is to blame.
    """
    there = file.schema_arrow.names
    image = item_of(source.image_column, there)[0] if source.image_column else None
    asked = [column for column in (image, source.text_column) if column is not None]
    if piece.stop > file.metadata.num_rows:
        raise changed(table)
    own = [column for column in there if name_in(source, column) in source.columns]
    wanted = list(dict.fromkeys([*own, *(column for column in asked if column in there)]))  # others may have the rest
    hidden = source.storage.get(LEFT_OUT, {}).get(IMAGES)
    first = 0
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        start, stop = max(piece.start, first), min(piece.stop, first + about.num_rows)
        if start < stop:
            held = _held(file, group, hidden) if hidden in there and hidden not in own else None
            size = max(1, min(batch_rows, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
            batches = file.iter_batches(size, row_groups=[group], columns=wanted, use_threads=False)
            at = first
            while start < stop:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        raise OSError("it ends too early")
                    part = batch.slice(min(start - at, len(batch)), stop - start)
                    rows = list(_made(source, table, part, start, own))
                    for row, hides in zip(rows, held[start - first :] if held else [], strict=False):
                        if hides:
                            row.left_out = (*row.left_out, IMAGES)
                except READ_ERRORS as error:
                    if is_barred(error):
                        raise StoreAway(in_words(error)) from error
                    yield from table.lost(start, stop, f"row group {group} cannot be read ({in_words(error)})")
                    break
                yield from rows
                start, at = start + len(part), at + len(batch)
        first += about.num_rows


def column(file: Any, name: str | None) -> Iterator[list[Any]]:
    """A column's values, some rows at a time; nothing if the file lacks it."""
    if name in file.schema_arrow.names:
        for batch in file.iter_batches(BATCH_ROWS, columns=[name], use_threads=False):
            yield texts(batch.column(0))


def find_path(source: Source, file: Any, path: str) -> int | None:
    """The number of the first row whose image has this path beside its bytes; None if no row has."""
    column, _ = item_of(source.image_column or "", file.schema_arrow.names)
    if column not in file.schema_arrow.names:
        return None
    kind = plain(file.schema_arrow.field(column).type)
    if not types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    at = 0
    for batch in file.iter_batches(2**16, columns=[f"{column}.path"], use_threads=False):
        index = texts(batch.column(0).field("path"))
        if path in index:
            return at + index.index(path)
        at += len(batch)
    return None


def _held(file: Any, group: int, column: str) -> list[bool]:
    """Whether each row of a row group has something in a column that is not read; by the footer, if that tells it."""
    rows = file.metadata.row_group(group)
    leaves = [rows.column(n) for n in range(rows.num_columns)]
    leaves = [leaf for leaf in leaves if leaf.path_in_schema == column or leaf.path_in_schema.startswith(f"{column}.")]
    counts = [leaf.statistics.null_count for leaf in leaves if leaf.statistics and leaf.statistics.has_null_count]
    if not any(".list." in leaf.path_in_schema for leaf in leaves) and len(counts) == len(leaves) > 0:
        if 0 in counts:
            return [True] * rows.num_rows
        if min(counts) == rows.num_rows:
            return [False] * rows.num_rows
    held: list[bool] = []
    try:
        for batch in file.iter_batches(64, row_groups=[group], columns=[column], use_threads=False):
            array = batch.column(0)
            if is_list(plain(array.type)):
                held += [bool(length) for length in pc.list_value_length(array).to_pylist()]
            else:
                held += array.is_valid().to_pylist()
    except READ_ERRORS as error:
        if is_barred(error):
            raise StoreAway(in_words(error)) from error
    return held + [False] * (rows.num_rows - len(held))


def _made(source: Source, table: Table, batch: Any, first: int, own: list[str]) -> Iterator[Row]:
    """The rows of a batch."""
    size = len(batch)
    names = [name_in(source, column) for column in own]
    columns = [values(batch.column(column), source.columns[name]) for column, name in zip(own, names, strict=True)]
    records = zip(*columns, strict=True) if columns else [()] * size
    here = batch.schema.names
    captions = texts(batch.column(source.text_column)) if source.text_column in here else [None] * size
    column, item = item_of(source.image_column, here) if source.image_column else (None, None)
    nothing: _Items = [(None, None, None)]
    images = _items(batch.column(column), item) if column in here else [nothing] * size
    for n, (record, several, caption) in enumerate(zip(records, images, captions, strict=True)):
        for image, path, at in several:
            yield table.row(first + n, dict(zip(names, record, strict=True)), image, caption, path, at)


def _items(array: Any, item: int | None) -> list[_Items]:
    """Each row's images, with the paths that encoded ones have beside them and, in lists, their numbers.

    Of lists ``item`` is taken, None: all. A row without any has one that is None.
    """
    if not is_list(plain(array.type)):
        return [[(image, path, None)] for image, path in zip(*_images(array), strict=True)]
    array = array.storage if isinstance(array.type, pa.BaseExtensionType) else array
    items = zip(*_images(array.flatten()), strict=True)
    out: list[_Items] = []
    for length in pc.list_value_length(array).to_pylist():
        several: _Items = [(image, path, n) for n, (image, path) in enumerate(islice(items, length or 0))]
        if item is not None:
            several = [(image, path, None) for image, path, _ in several[item : item + 1]]
        out.append(several or [(None, None, None)])
    return out


def _images(array: Any) -> tuple[list[Any], list[str | None]]:
    """Images, encoded or as paths or URLs, and the paths that encoded ones have beside them."""
    if not types.is_struct(array.type):
        return texts(array), [None] * len(array)
    fields = {array.type.field(n).name: field for n, field in enumerate(array.flatten())}
    held = [texts(fields[name]) for name in MEMBERS if name in fields and not types.is_nested(plain(fields[name].type))]
    paths = values(fields["path"], "string") if "path" in fields else [None] * len(array)
    return [next((value for value in row if value), None) for row in zip(*held, strict=True)], paths
