"""The layout ``table``: each shard is one parquet file, a row of it an id, its vectors and its metadata.

Databases and data frames read it as it is. ``id`` is an integer that no other row of the output has: the shard's number
times 1,000,000,000, and the row's place in it. With images or texts alone their column is ``vector``, with both
``image_vector`` and ``text_vector``. A column of the source that is named like one of these is ``source_…`` there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_queue.shared.errors import BadInput
from clip_queue.shared.vectors import Matrix, Vector
from clip_queue.sources.source import Source

CLIP_RETRIEVAL, TABLE = "clip-retrieval", "table"
LAYOUTS = (CLIP_RETRIEVAL, TABLE)

ID = "id"
MOST_ROWS = 10**9  # of a shard; ids of the next one begin there
BATCH_ROWS = 4096  # rows whose vectors are read at once

_OURS = re.compile(r"(source_)*(id|vector|image_vector|text_vector)")


def row_id(shard: int, row: int) -> int:
    return shard * MOST_ROWS + row


def place(row_id: int) -> tuple[int, int]:
    """The shard and the row in it that an id stands for."""
    return divmod(row_id, MOST_ROWS)


def vector_columns(source: Source) -> dict[str, str]:
    """The columns of vectors, by kind (``image``, ``text``)."""
    kinds = [kind for kind, there in (("image", source.images), ("text", source.texts)) if there]
    return {kind: "vector" if len(kinds) == 1 else f"{kind}_vector" for kind in kinds}


def column_name(name: str) -> str:
    """A metadata column's name in the table. Two names never become one: ``source_id`` is renamed as well."""
    return f"source_{name}" if _OURS.fullmatch(name) else name


def metadata_name(column: str) -> str | None:
    """The metadata column that a column of the table holds; None: it is an id or vectors."""
    if not _OURS.fullmatch(column):
        return column
    return column.removeprefix("source_") if column.startswith("source_") else None


def schema(source: Source, metadata: pa.Schema, dimension: int, dtype: str) -> pa.Schema:
    """The columns of a table, in order; ``metadata`` are those of the metadata, ``dtype`` float16 or float32."""
    vector = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dimension)
    vectors = [(column, vector) for column in vector_columns(source).values()]
    own = [(column_name(field.name), field.type) for field in metadata]
    return pa.schema([(ID, pa.int64()), *vectors, *own])


def row(source: Source, id: int, vectors: dict[str, Vector], columns: dict[str, Any]) -> dict[str, Any]:
    """A row's values, by column."""
    own = {column_name(name): value for name, value in columns.items()}
    return {ID: id, **{column: vectors[kind] for kind, column in vector_columns(source).items()}, **own}


def vector_array(vectors: list[Vector], kind: pa.FixedSizeListType) -> pa.FixedSizeListArray:
    """Vectors as a column of the type ``kind``."""
    matrix = np.stack(vectors).astype(kind.value_type.to_pandas_dtype())
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), type=kind)


def matrix(column: pa.FixedSizeListArray) -> Matrix:
    """The vectors (n, dimension) of a column, as they are stored; a copy."""
    floats = column.flatten().to_numpy(zero_copy_only=False)
    return np.array(floats).reshape(len(column), column.type.list_size)


def matrices(path: Path, name: str, column: str, dimension: int) -> Iterator[Matrix]:
    """The vectors (n, dimension) of a table, as they are stored, some thousand rows at a time.

    Raises:
        BadInput: the file is broken, or has no such column of that many numbers; ``name`` is its name in the message.
    """
    try:
        with pq.ParquetFile(path) as file:
            check(file.schema_arrow, name, column, dimension)
            for batch in file.iter_batches(BATCH_ROWS, columns=[column], use_threads=False):
                yield matrix(batch.column(0))
    except pa.ArrowException as error:
        raise BadInput(f"{name} is broken: {error}") from error


def check(there: pa.Schema, name: str, column: str, dimension: int) -> None:
    """Raise :class:`BadInput` unless a file's columns hold vectors of that many numbers."""
    kind: Any = there.field(column).type if column in there.names else pa.null()
    is_vector = pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)
    if not is_vector or kind.list_size != dimension:
        raise BadInput(f"{name} has no column {column!r} of {dimension} floats")
