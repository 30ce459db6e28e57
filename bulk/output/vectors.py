"""A shard's files read back, never whole: vectors a block at a time, of the metadata the row groups asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_queue.shared.errors import BadInput

# Numbers made float32 at a time: 128 KiB, which stays in a core's cache. torch shares out any more among threads,
# which on a machine that does anything else takes ten times as long.
BLOCK = 2**15

Matrix = NDArray[np.float32]


def blocks(path: Path, name: str, dimension: int) -> Iterator[tuple[int, Matrix]]:
    """A .npy's rows (n, dimension) as float32, with the number of the first of them. A block is valid until the next.

    Raises:
        BadInput: not a matrix of that many columns; ``name`` is what it is called.
    """
    try:
        mapped = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadInput(f"{name} is broken: {error}") from error
    floats = isinstance(mapped, np.ndarray) and mapped.dtype.kind == "f"
    if not floats or mapped.ndim != 2 or mapped.shape[1] != dimension:
        raise BadInput(f"{name} is not a matrix of {dimension} columns of floats")
    matrix = np.asarray(mapped)  # slices of a memmap are slow to make
    size = max(1, BLOCK // dimension)
    room = np.empty((size, dimension), dtype=np.float32)
    for start in range(0, len(matrix), size):
        yield start, _float32(matrix[start : start + size], room)


def _float32(block: NDArray[Any], room: Matrix) -> Matrix:
    """``block`` (n, dimension) as float32, in ``room`` if it has to be converted."""
    if block.dtype == np.float32:
        return block
    out = room[: len(block)]
    if block.dtype == np.float16:
        import torch  # four times as fast at it as numpy, and loaded for the query anyway

        torch.from_numpy(out).copy_(torch.from_numpy(block))
    else:
        np.copyto(out, block, casting="same_kind")
    return out


def metadata(path: Path, name: str, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Rows of a metadata file by number; only the row groups that hold one are read.

    Raises:
        BadInput: the file is broken, or too short.
    """
    found: dict[int, dict[str, Any]] = {}
    try:
        with pq.ParquetFile(path) as file:
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                if inside := [row for row in rows if start <= row < stop]:
                    table = file.read_row_group(group).take([row - start for row in inside])
                    found.update(zip(inside, _plain(table), strict=True))
                start = stop
    except pa.ArrowException as error:
        raise BadInput(f"{name} is broken: {error}") from error
    if missing := set(rows) - found.keys():
        raise BadInput(f"{name} has no row {min(missing)}, though there is a vector of it")
    return found


def _plain(table: pa.Table) -> list[dict[str, Any]]:
    """A table's rows as Python values; a column that has no such value everywhere (a time in nanoseconds, a year
    beyond Python's) as text."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (ValueError, OverflowError):
            columns[name] = column.cast(pa.string()).to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
