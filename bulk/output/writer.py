"""The writer of a shard: vectors go to .npy files and their metadata to .parquet files, or both to a table, row by row.

Memory does not grow with the shard. Every file is written in a staging folder; :meth:`ShardWriter.finish`
publishes them, and last the marker that says that the shard is complete.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_queue.bulk.output import markers, table_layout
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.markers import EXAMPLES
from clip_queue.shared.errors import ClipError
from clip_queue.shared.vectors import Matrix, normalise
from clip_queue.sources.image_references import redacted
from clip_queue.sources.source import Row, Source

ROW_GROUP = 4096  # rows of metadata that are held in memory before they are written


class NpyFile:
    """A .npy file of a matrix (rows, dimension) to which rows are appended."""

    def __init__(self, path: Path, dimension: int, dtype: str) -> None:
        self.path = path
        self._dimension, self._dtype = dimension, np.dtype(dtype).newbyteorder("<")
        self.rows = 0
        self._file: BinaryIO = path.open("wb")
        self._file.write(self._header())

    def append(self, matrix: Matrix) -> None:
        self._file.write(np.ascontiguousarray(matrix, dtype=self._dtype).data)
        self.rows += len(matrix)

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())  # numpy leaves room in it for the number of rows to grow
        self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _header(self) -> bytes:
        out = io.BytesIO()
        about = {"shape": (self.rows, self._dimension), "fortran_order": False, "descr": self._dtype.str}
        np.lib.format.write_array_header_1_0(out, about)
        return out.getvalue()


class TableFile:
    """A parquet file to which rows are appended, a row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self._schema = schema
        self._writer: Any = None
        self._waiting: list[dict[str, Any]] = []

    def append(self, columns: dict[str, Any]) -> None:
        self._waiting.append(columns)
        self.rows += 1
        if len(self._waiting) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        self._waiting = []
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._writer is None:
            plain = [field.name for field in self._schema if not pa.types.is_fixed_size_list(field.type)]
            words = plain if len(plain) < len(self._schema) else True  # a dictionary of a vector's numbers is larger
            self._writer = pq.ParquetWriter(self.path, self._schema, compression="zstd", use_dictionary=words)
        if self._waiting:
            columns = [_array([row.get(field.name) for row in self._waiting], field.type) for field in self._schema]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
            self._waiting = []


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return table_layout.vector_array(values, kind)
    return pa.array(values, kind)


class ShardWriter:
    """A context manager. Without :meth:`finish`, nothing of the shard remains when it ends."""

    def __init__(self, output: Output, plan: RunPlan, shard: int) -> None:
        self._output, self._plan, self._shard = output, plan, shard
        self._names = plan.names(shard)
        self._is_table = plan.options.layout == table_layout.TABLE
        self._staging = output.staging()
        self.rows = 0
        self.failed = 0
        self.halves = self.cut = 0
        self._reasons: dict[str, dict[str, Any]] = {}
        self._left_out: Counter[str] = Counter()
        self._without_text = 0

    def __enter__(self) -> ShardWriter:
        self._folder = self._staging.__enter__()
        source, wanted = self._plan.source, {"image": self._plan.source.images, "text": self._plan.source.texts}
        dimension, dtype = self._plan.model.dimension, self._plan.options.dtype
        schema = arrow_schema(source)
        self._vectors: dict[str, NpyFile] = {}
        if self._is_table:
            rows = TableFile(self._path("table"), table_layout.schema(source, schema, dimension, dtype))
            self._tables = {"table": rows}
        else:
            self._vectors = {k: NpyFile(self._path(k), dimension, dtype) for k, is_in in wanted.items() if is_in}
            self._tables = {"metadata": TableFile(self._path("metadata"), schema)}
        self._tables["errors"] = TableFile(self._path("errors"), schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        files: list[NpyFile | TableFile] = [*self._vectors.values(), *self._tables.values()]
        for file in files:
            file.abandon()
        self._staging.__exit__(kind, error, at)

    def _path(self, kind: str) -> Path:
        return self._folder / self._names[kind].rpartition("/")[2]

    def write(self, rows: Sequence[Row], vectors: dict[str, Matrix], cut: int = 0) -> None:
        """Add rows that were embedded, and for each kind (``image``, ``text``) their vectors (rows, dimension),
        float32. ``cut``: how many of their texts were."""
        if self._plan.options.normalize:
            vectors = {kind: normalise(matrix) for kind, matrix in vectors.items()}
        for kind, file in self._vectors.items():
            file.append(vectors[kind])
        for n, row in enumerate(rows):
            columns = row.columns | _faults(row)
            if self._is_table:
                own = {kind: matrix[n] for kind, matrix in vectors.items()}
                id = table_layout.row_id(self._shard, self.rows + n)
                columns = table_layout.row(self._plan.source, id, own, columns)
            self._tables["table" if self._is_table else "metadata"].append(columns)
            self.halves += bool(row.faults)
            for fault in row.faults.values():
                self._count(row, fault)
            self._left_out.update(row.left_out)
            self._without_text += bool(self._plan.source.texts) and row.text is None and "text" not in row.faults
        self.rows += len(rows)
        self.cut += cut

    def fail(self, row: Row, error: ClipError) -> None:
        """Add a row that failed."""
        self._tables["errors"].append({**row.columns, "error": error.message})
        self.failed += 1
        self._left_out.update(row.left_out)
        self._count(row, error)

    def _count(self, row: Row, error: ClipError) -> None:
        reason = self._reasons.setdefault(error.code, {"rows": 0, "examples": []})
        reason["rows"] += 1
        if len(reason["examples"]) < EXAMPLES:
            path = row.columns.get("image_path")
            reason["examples"].append({"image_path": path and redacted(path), "error": error.message})

    def finish(self, seconds: dict[str, float], *, digest: str | None = None) -> dict[str, Any]:
        """Publish the files, and last the marker; returns the marker. ``digest``: of the rows as they were read."""
        made: dict[str, NpyFile | TableFile] = {**self._vectors, **self._tables}
        ready = {kind: file for kind, file in made.items() if file.rows}
        files = {}
        for kind, file in ready.items():
            file.close()
            files[self._names[kind]] = {"bytes": file.path.stat().st_size, "blake2b": checksum(file.path)}
        for kind, file in ready.items():
            self._output.publish(file.path, self._names[kind])
        marker = {
            "plan": self._plan.id,
            "shard": self._shard,
            "rows": self.rows,
            "failed": self.failed,
            "halves": self.halves,  # rows of which a part is at fault, and a half is embedded
            "cut": self.cut,
            "errors": self._reasons,
            "left_out": dict(self._left_out),  # rows with images or texts that are not embedded
            "without_text": self._without_text,
            "digest": digest,
            "files": files,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }
        markers.publish(self._output, self._plan, marker, self._path("shard"))
        return marker


def _faults(row: Row) -> dict[str, str]:
    return {"error": " ".join(fault.message for fault in row.faults.values())} if row.faults else {}


def arrow_schema(source: Source) -> pa.Schema:
    """The metadata's columns, in order."""
    own = [(name, arrow_type(text)) for name, text in source.columns.items()]
    return pa.schema([("image_path", pa.string()), ("caption", pa.string()), *own, ("error", pa.string())])


def arrow_type(name: str) -> pa.DataType:
    """The type of a name in ``Source.columns``; a type that has no short name is kept as JSON text."""
    try:
        return pa.type_for_alias(name)
    except ValueError:
        return pa.string()


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
