"""A condition on the metadata of an output's rows, in SQL, evaluated by DuckDB.

DuckDB, since its expressions are those that people know, with functions for texts, dates and lists; pyarrow, which is
here anyway, has no text form of its own, and a language of ours would be one more to learn. It sees the rows that it is
given, and neither files nor the network.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_queue.bulk.output.stored_shards import StoredShards
from clip_queue.shared.errors import BadInput

BATCH_ROWS = 16_384  # rows whose metadata are in memory at once

_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")  # texts and names
_WINDOW = re.compile(r"\bover\s*\(", re.IGNORECASE)

_CLOSED: dict[str, Any] = {"enable_external_access": "false", "lock_configuration": "true", "threads": "1"}


class RowFilter:
    """A condition such as ``caption LIKE '%cat%' AND width > 200``; for one thread. Null counts as false."""

    def __init__(self, condition: str) -> None:
        """Raises :class:`BadInput` if it is no expression, or DuckDB is not installed."""
        try:
            import duckdb
        except ModuleNotFoundError:
            raise BadInput("a filter needs DuckDB: pip install 'clip-queue[search]'") from None
        self._condition, self._error = condition, duckdb.Error
        if _WINDOW.search(_QUOTED.sub("", condition)):  # its rows would be those that are in memory together
            raise BadInput(f"the filter {condition!r} is no condition on a single row")
        self._database = duckdb.connect(":memory:", config=_CLOSED)
        try:
            self._keep = duckdb.SQLExpression(condition).cast("BOOLEAN").alias("keep")
        except duckdb.Error as error:
            raise self._wrong(error) from error

    def keep(self, stored: StoredShards, shard: int) -> NDArray[np.bool_]:
        """Which rows (n,) of a shard meet the condition.

        Raises:
            BadInput: the condition does not fit the columns, or the file is broken.
            OSError: it cannot be read.
        """
        with stored.metadata_file(shard) as (path, name, columns):
            try:
                with pq.ParquetFile(path) as file:
                    batches = file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False)
                    parts = [self._of(batch, stored) for batch in batches]
            except pa.ArrowException as error:
                raise BadInput(f"{name} is broken: {error}") from error
        return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)

    def _of(self, batch: Any, stored: StoredShards) -> NDArray[np.bool_]:
        names = [stored.metadata_name(column) for column in batch.schema.names]
        table = pa.Table.from_batches([batch]).rename_columns(names)
        try:
            found = self._database.from_arrow(table).select(self._keep).to_arrow_table().column(0)
        except self._error as error:
            raise self._wrong(error) from error
        if len(found) != len(batch):
            raise BadInput(f"the filter {self._condition!r} is no condition on a single row")
        kept: NDArray[np.bool_] = found.fill_null(False).to_numpy()
        return kept

    def _wrong(self, error: Exception) -> BadInput:
        return BadInput(f"the filter {self._condition!r} cannot be used: {str(error).strip().partition(chr(10))[0]}")
