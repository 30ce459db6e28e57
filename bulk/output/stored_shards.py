"""The rows of an output's shards as they are stored, in either layout: vectors in blocks, and rows by their numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_queue.bulk.output import table_layout, vectors
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.table_layout import TABLE
from clip_queue.bulk.output.vectors import BLOCK_NUMBERS
from clip_queue.shared.vectors import Matrix
from clip_queue.sources.storage import as_os_error, filesystem


class StoredShards:
    """The shards of an output; ``kind``: whose vectors, ``image`` or ``text``.

    Everything raises :class:`BadInput` where a file is not what its marker says, and :class:`OSError` where it cannot
    be read.
    """

    def __init__(self, output: Output, plan: RunPlan, kind: str) -> None:
        self._output, self._plan, self._kind = output, plan, kind
        self._is_table = plan.options.layout == TABLE
        self.dimension = plan.model.dimension

    def blocks(self, shard: int, numbers: int = BLOCK_NUMBERS) -> Iterator[tuple[int, Matrix]]:
        """The vectors of a shard in blocks (n, dimension), float32, each with the number of its first row. A block has
        at most ``numbers`` numbers, and is valid until the next one is asked for."""
        with self._vectors(shard) as (path, name):
            if not self._is_table:
                yield from vectors.blocks(path, name, self.dimension, numbers=numbers)
                return
            start = 0
            for matrix in table_layout.matrices(path, name, self._column, self.dimension):
                for first, block in vectors.float32_blocks(matrix, numbers=numbers):
                    yield start + first, block
                start += len(matrix)

    def vectors(self, shard: int, rows: Sequence[int]) -> Matrix:
        """The vectors (rows, dimension), float32, of some rows of a shard, in the rows' order of numbers."""
        with self._vectors(shard) as (path, name):
            if self._is_table:
                found = vectors.table_rows(path, name, rows, [self._column])
                stored = table_layout.matrix(found.column(0).combine_chunks())
            else:
                stored = vectors.mapped(path, name, self.dimension)[sorted(rows)]
            return stored.astype("float32")

    def metadata(self, shard: int, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The metadata of some rows of a shard, by their numbers."""
        with self.metadata_file(shard) as (path, name, columns):
            found = vectors.metadata(path, name, rows, columns)
        return {row: {self.metadata_name(column): v for column, v in values.items()} for row, values in found.items()}

    @contextlib.contextmanager
    def metadata_file(self, shard: int) -> Iterator[tuple[Path, str, list[str] | None]]:
        """The parquet file that holds a shard's metadata, its name, and which of its columns do; None: all."""
        name = self._names(shard)["table" if self._is_table else "metadata"]
        with self._local(name) as path:
            yield path, name, vectors.metadata_columns(path, name) if self._is_table else None

    def metadata_name(self, column: str) -> str:
        """The metadata's name for a column of :meth:`metadata_file`."""
        return (self._is_table and table_layout.metadata_name(column)) or column

    def vectors_file(self, shard: int) -> str:
        """The name of the file that holds a shard's vectors."""
        return self._names(shard)["table" if self._is_table else self._kind]

    @property
    def _column(self) -> str:
        return table_layout.vector_columns(self._plan.source)[self._kind]

    def _names(self, shard: int) -> dict[str, str]:
        return self._plan.names(shard)

    @contextlib.contextmanager
    def _vectors(self, shard: int) -> Iterator[tuple[Path, str]]:
        name = self.vectors_file(shard)
        with self._local(name) as path:
            yield path, name

    @contextlib.contextmanager
    def _local(self, name: str) -> Iterator[Path]:
        """A file of the output as a local path; a remote file is fetched for as long as the block lasts."""
        if self._output.local:
            yield self._output.local / name
            return
        with self._output.staging() as folder:
            with as_os_error():
                filesystem(self._output.protocol).get_file(self._output.path(name), str(folder / "part"))
            yield folder / "part"
