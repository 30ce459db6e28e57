"""The plan file: which pieces of the source each shard reads. It is written first, and a run that is resumed reads it.

It stands as ``plan.parquet``, a row group a shard, so that a worker reads its own shard's and nobody ever holds it all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from clip_queue.bulk.output.layout import PLAN, Output
from clip_queue.sources.source import Piece, Shard, SourceError
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


def write_plan(output: Output, shards: Iterator[Shard], seen: Callable[[int, int], None]) -> tuple[int, int | None]:
    """Write the shards as the source gives them; returns their number, and the number of rows if all are known.

    ``seen`` is told shards and rows so far. Raises :class:`SourceError` for a source without a row.
    """
    count, rows, known = 0, 0, True
    with output.staged(PLAN) as path:
        with pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=False) as writer:
            for shard in shards:
                columns = [list(column) for column in zip(*shard.pieces, strict=True)] or [[] for _ in Piece._fields]
                total = -1 if shard.rows is None else shard.rows
                table = pa.table([*columns, [total] * len(shard.pieces)], schema=SCHEMA)
                writer.write_table(table, row_group_size=max(1, len(shard.pieces)))
                count, rows, known = count + 1, rows + max(0, total), known and total >= 0
                seen(count, rows)
        if not count:
            raise SourceError("the source holds nothing to embed")
    return count, rows if known else None


def has_plan(output: Output) -> bool:
    return output.size(PLAN) is not None


def move_plan(output: Output, to: Output) -> None:
    """Make an output's plan that of another output."""
    output.move(PLAN, to)


class PlanFile:
    """An open plan file; for one thread."""

    def __init__(self, output: Output) -> None:
        store = None if output.protocol == LOCAL else filesystem(output.protocol)
        with as_os_error():
            self._file = pq.ParquetFile(output.path(PLAN), filesystem=store)

    def shard(self, number: int) -> Shard:
        columns = self._file.read_row_group(number).to_pydict()
        rows = next(iter(columns.pop("rows")), 0)  # an update may leave nothing of a shard
        pieces = [Piece(*row) for row in zip(*columns.values(), strict=True)]
        return Shard(pieces, None if rows < 0 else rows)

    def rows(self, number: int) -> int:
        """The number of rows of a shard, from the file's footer; 0 where only reading the source tells."""
        statistics = self._file.metadata.row_group(number).column(5).statistics
        return max(0, statistics.min) if statistics and statistics.has_min_max else 0

    def weight(self, number: int) -> int:
        """The size of a shard's containers, bytes, 0 where unknown. A number of rows that is not known is estimated
        from it."""
        sizes = self._file.read_row_group(number, columns=["size"]).column(0)
        return sum(max(0, size.as_py()) for size in sizes)
