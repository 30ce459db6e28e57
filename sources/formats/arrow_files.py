"""Arrow files (IPC streams as Hugging Face's ``save_to_disk`` writes them, and IPC files, Feather), read as parquet is.

A local file is mapped into memory, so that only what is used of it is read. One in a store is read from its beginning.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from clip_queue.sources.storage import LOCAL

FILE_MAGIC = b"ARROW1"


class Group(NamedTuple):
    """A record batch, as a parquet file tells of a row group."""

    num_rows: int
    total_byte_size: int


class Metadata:
    """What a parquet file tells of itself, of record batches."""

    def __init__(self, groups: list[Group]) -> None:
        self._groups = groups
        self.num_rows = sum(group.num_rows for group in groups)

    def row_group(self, number: int) -> Group:
        return self._groups[number]


class ArrowFile:
    """An open Arrow file with the part of :class:`pyarrow.parquet.ParquetFile` that is used; a batch is a row group."""

    def __init__(self, handle: Any, protocol: str) -> None:
        """Raises :class:`OSError` or :class:`pyarrow.ArrowException` if it cannot be read whole, but for its values."""
        self._handle = handle
        if protocol == LOCAL:
            try:
                self._handle = pa.BufferReader(pa.py_buffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)))
            except ValueError as error:
                raise OSError("it is empty") from error
        self._is_file = self._handle.read(len(FILE_MAGIC)) == FILE_MAGIC
        self._at = -1
        self._begin()
        self.schema_arrow = self._reader.schema
        groups = []
        while (batch := self._next()) is not None:
            groups.append(Group(batch.num_rows, batch.get_total_buffer_size()))
        self.metadata, self.num_row_groups = Metadata(groups), len(groups)

    def iter_batches(
        self, size: int, *, row_groups: list[int] | None = None, columns: list[str], **_: Any
    ) -> Iterator[Any]:
        """Record batches of at most ``size`` rows; of a struct's field, as ``column.field``, the struct."""
        wanted = list(
            dict.fromkeys(
                column.partition(".")[0] if column not in self.schema_arrow.names else column for column in columns
            )
        )
        for number in range(self.num_row_groups) if row_groups is None else row_groups:
            batch = self._batch(number).select(wanted)
            yield from (batch.slice(start, size) for start in range(0, len(batch), size))

    def _begin(self) -> None:
        self._handle.seek(0)
        self._reader: Any = (pa.ipc.open_file if self._is_file else pa.ipc.open_stream)(self._handle)
        self._at = 0

    def _next(self) -> Any:
        """The next record batch; None at the end."""
        if self._is_file:
            if self._at == self._reader.num_record_batches:
                return None
            batch = self._reader.get_batch(self._at)
        else:
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                return None
        self._at += 1
        return batch

    def _batch(self, number: int) -> Any:
        if number < self._at:
            self._begin()
        if self._is_file:
            self._at = number
        while (batch := self._next()) is not None:
            if self._at > number:
                return batch
        raise OSError("it ends too early")
