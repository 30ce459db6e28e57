"""Reading a shard's files without loading them whole: vectors block by block, metadata by the row groups asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_queue.bulk.output.table_layout import metadata_name
from clip_queue.shared.errors import BadInput
from clip_queue.shared.vectors import Matrix

# Numbers converted to float32 at a time: 128 KiB, which stays in a core's cache. torch splits a larger block among
# threads, which takes ten times as long on a machine that is busy with other work.
BLOCK_NUMBERS = 2**15


def blocks(path: Path, name: str, dimension: int, *, numbers: int = BLOCK_NUMBERS) -> Iterator[tuple[int, Matrix]]:
    """The rows of a .npy file in blocks (n, dimension), float32, each with the number of its first row. A block is
    valid until the next one is asked for.

    Raises:
        BadInput: the file is not a matrix of that many columns; ``name`` is its name in the message.
    """
    yield from float32_blocks(mapped(path, name, dimension), numbers=numbers)


def mapped(path: Path, name: str, dimension: int) -> NDArray[Any]:
    """The matrix (n, dimension) of a .npy file, which stays on the disk until a part of it is used.

    Raises:
        BadInput: the file is not a matrix of that many columns; ``name`` is its name in the message.
    """
    try:
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadInput(f"{name} is broken: {error}") from error
    floats = isinstance(found, np.ndarray) and found.dtype.kind == "f"
    if not floats or found.ndim != 2 or found.shape[1] != dimension:
        raise BadInput(f"{name} is not a matrix of {dimension} columns of floats")
    return np.asarray(found)  # slices of a memmap are slow to make


def float32_blocks(matrix: NDArray[Any], *, numbers: int) -> Iterator[tuple[int, Matrix]]:
    """A matrix of floats in blocks, float32, of at most ``numbers`` numbers, each with the number of its first row. A
    block is valid until the next one is asked for."""
    dimension = matrix.shape[1]
    size = max(1, numbers // dimension)
    buffer = np.empty((size, dimension), dtype=np.float32)
    for start in range(0, len(matrix), size):
        yield start, _float32(matrix[start : start + size], buffer)


def _float32(block: NDArray[Any], buffer: Matrix) -> Matrix:
    """``block`` (n, dimension) as float32; a block that has to be converted is written to ``buffer``."""
    if block.dtype == np.float32:
        return block
    out = buffer[: len(block)]
    if block.dtype == np.float16:
        try:
            import torch  # ten times as fast at it as numpy, and loaded for the query anyway
        except ModuleNotFoundError:  # the service searches without it
            pass
        else:
            torch.from_numpy(out).copy_(torch.from_numpy(block))
            return out
    np.copyto(out, block, casting="same_kind")
    return out


def metadata(path: Path, name: str, rows: Sequence[int], columns: list[str] | None = None) -> dict[int, dict[str, Any]]:
    """Rows of a metadata file by their numbers; only the row groups that hold one of them are read.

    Raises:
        BadInput: the file is broken, or too short.
    """
    asked = sorted(set(rows))
    return dict(zip(asked, _plain(table_rows(path, name, asked, columns)), strict=True))


def table_rows(path: Path, name: str, rows: Sequence[int], columns: list[str] | None = None) -> pa.Table:
    """Rows of a parquet file, ascending by their numbers; of ``columns``, or all of them.

    Raises:
        BadInput: the file is broken, or too short.
    """
    asked, only = sorted(rows), {} if columns is None else {"columns": columns}
    parts = []
    try:
        with pq.ParquetFile(path) as file:
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                if inside := [row - start for row in asked if start <= row < stop]:
                    parts.append(file.read_row_group(group, **only).take(inside))
                start = stop
            if missing := [row for row in asked if row >= start]:
                raise BadInput(f"{name} has no row {missing[0]}, though there is a vector of it")
            return pa.concat_tables(parts) if parts else file.schema_arrow.empty_table()
    except pa.ArrowException as error:
        raise BadInput(f"{name} is broken: {error}") from error


def metadata_columns(path: Path, name: str) -> list[str]:
    """The columns of a file in the layout ``table`` that hold metadata. Raises :class:`BadInput` if it is broken."""
    try:
        return [column for column in pq.read_schema(path).names if metadata_name(column) is not None]
    except pa.ArrowException as error:
        raise BadInput(f"{name} is broken: {error}") from error


def _plain(table: pa.Table) -> list[dict[str, Any]]:
    """A table's rows as Python values. A column with a value that Python cannot hold (a time in nanoseconds, a year
    beyond Python's range) becomes text."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (ValueError, OverflowError):
            columns[name] = column.cast(pa.string()).to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
