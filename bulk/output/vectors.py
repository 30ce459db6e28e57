"""Reading a shard's files without loading them whole: vectors block by block, metadata by the row groups asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

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
    try:
        mapped = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadInput(f"{name} is broken: {error}") from error
    floats = isinstance(mapped, np.ndarray) and mapped.dtype.kind == "f"
    if not floats or mapped.ndim != 2 or mapped.shape[1] != dimension:
        raise BadInput(f"{name} is not a matrix of {dimension} columns of floats")
    matrix = np.asarray(mapped)  # slices of a memmap are slow to make
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
        import torch  # four times as fast at it as numpy, and loaded for the query anyway

        torch.from_numpy(out).copy_(torch.from_numpy(block))
    else:
        np.copyto(out, block, casting="same_kind")
    return out


def metadata(path: Path, name: str, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Rows of a metadata file by their numbers; only the row groups that hold one of them are read.

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
    """A table's rows as Python values. A column with a value that Python cannot hold (a time in nanoseconds, a year
    beyond Python's range) becomes text."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (ValueError, OverflowError):
            columns[name] = column.cast(pa.string()).to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
