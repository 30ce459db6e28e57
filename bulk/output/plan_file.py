"""The plan of a run: which pieces of the source each shard reads. Written before anything else; resuming reads it.

It stands as ``plan.parquet``, a row group a shard, so that a worker reads its own shard's and nobody ever holds it all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from clip_queue.bulk.output.layout import PLAN, Output
from clip_queue.sources.source import Piece, ShardPlan, SourceError
from clip_queue.sources.storage import LOCAL, as_os_error, filesystem

SCHEMA = pa.schema(
    [
        ("path", pa.binary()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("size", pa.int64()),
        ("note", pa.string()),
        ("rows", pa.int64()),  # of the whole shard, in each of its rows; -1: unknown
    ]
)


def write(output: Output, shards: Iterator[ShardPlan], seen: Callable[[int, int], None]) -> tuple[int, int | None]:
    """Write the plan as it is made; returns how many shards, and how many rows if all are known.

    ``seen`` is told shards and rows so far. Raises :class:`SourceError` for a source without a row.
    """
    count, rows, known = 0, 0, True
    with output.aside(PLAN) as path:
        with pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=False) as writer:
            for shard in shards:
                columns = [list(column) for column in zip(*shard.pieces, strict=True)]
                total = -1 if shard.rows is None else shard.rows
                table = pa.table([*columns, [total] * len(shard.pieces)], schema=SCHEMA)
                writer.write_table(table, row_group_size=len(shard.pieces))
                count, rows, known = count + 1, rows + max(0, total), known and total >= 0
                seen(count, rows)
        if not count:
            raise SourceError("the source holds nothing to embed")
    return count, rows if known else None


class PlanFile:
    """An open plan; for one thread."""

    def __init__(self, output: Output) -> None:
        store = None if output.protocol == LOCAL else filesystem(output.protocol)
        with as_os_error():
            self._file = pq.ParquetFile(output.path(PLAN), filesystem=store)

    def __len__(self) -> int:
        return int(self._file.num_row_groups)

    def shard(self, number: int) -> ShardPlan:
        columns = self._file.read_row_group(number).to_pydict()
        rows = columns.pop("rows")[0]
        pieces = [Piece(*row) for row in zip(*columns.values(), strict=True)]
        return ShardPlan(pieces, None if rows < 0 else rows)

    def rows(self, number: int) -> int:
        """Rows of a shard, 0 where only reading tells; read from the footer."""
        statistics = self._file.metadata.row_group(number).column(5).statistics
        return max(0, statistics.min) if statistics and statistics.has_min_max else 0

    def weight(self, number: int) -> int:
        """Bytes of a shard's containers, 0 where unknown: what unknown rows are estimated by."""
        sizes = self._file.read_row_group(number, columns=["size"]).column(0)
        return sum(max(0, size.as_py()) for size in sizes)
