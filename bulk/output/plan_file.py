"""The plan's files: which pieces of the source each shard reads. They are written first, and a run that is resumed
reads them.

A row group is a shard, so that a worker reads its own shard's and nobody ever holds it all. A file has :data:`PART`
shards and no more: its footer, which tells where they are, stays below the 64 KiB that are read of a file's end at
once, however long the plan is. The first is ``plan.parquet``, the n-th after it ``plan/plan_n.parquet``: where a shard
stands is computed.

Release 0.1.0 wrote one file of all shards, and reads no other: a plan of one part is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_queue.bulk.output.layout import PLAN, PLAN_PARTS, Output
from clip_queue.sources.source import Piece, Shard, SourceError
from clip_queue.sources.storage import LOCAL, StoreFile, as_os_error, open_file

PART = 128  # shards in a file

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
ROWS = SCHEMA.get_field_index("rows")


def part_name(part: int) -> str:
    return f"{PLAN_PARTS}/plan_{part}.parquet" if part else PLAN


def write_plan(output: Output, shards: Iterator[Shard], seen: Callable[[int, int], None]) -> tuple[int, int | None]:
    """Write the shards as the source gives them; returns their number, and the number of rows if all are known.

    A shard is in memory at a time. ``seen`` is told shards and rows so far. Raises :class:`SourceError` for a source
    without a row.
    """
    number, rows, known = 0, 0, True
    written = set[str]()
    for part in count():
        first = next(shards, None)
        if first is None:
            break
        with output.staged(part_name(part)) as path, _writer(path) as writer:
            for shard in chain([first], islice(shards, PART - 1)):
                total = -1 if shard.rows is None else shard.rows
                writer.write_table(_table(shard, total), row_group_size=max(1, len(shard.pieces)))
                number, rows, known = number + 1, rows + max(0, total), known and total >= 0
                seen(number, rows)
        written.add(part_name(part))
    if not number:
        raise SourceError("the source holds nothing to embed")
    for name in output.listed(PLAN_PARTS):  # of a longer plan that was cut short
        if f"{PLAN_PARTS}/{name}" not in written:
            output.remove(f"{PLAN_PARTS}/{name}")
    return number, rows if known else None


def _writer(path: Any) -> Any:
    # Statistics of the paths would be most of the footer.
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=["rows"])


def _table(shard: Shard, rows: int) -> pa.Table:
    columns = [list(column) for column in zip(*shard.pieces, strict=True)] or [[] for _ in Piece._fields]
    return pa.table([*columns, [rows] * len(shard.pieces)], schema=SCHEMA)


def has_plan(output: Output) -> bool:
    return output.size(PLAN) is not None


def move_plan(output: Output, to: Output) -> None:
    """Make an output's plan that of another output. Cut short, it leaves the first file: :func:`has_plan`."""
    for name in output.listed(PLAN_PARTS):
        if name.startswith("plan_"):
            output.move(f"{PLAN_PARTS}/{name}", to)
    output.move(PLAN, to)


class PlanFile:
    """The plan of an output; for one thread. One of its files is open at a time. Raises :class:`OSError`."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._part = -1  # that is open
        self._file: Any = None
        self._handle: StoreFile | None = None
        self._is_one = False  # all shards are in the first file

    def shard(self, number: int) -> Shard:
        file, group = self._place(number)
        with as_os_error():
            columns = file.read_row_group(group).to_pydict()
        rows = next(iter(columns.pop("rows")), 0)  # an update may leave nothing of a shard
        pieces = [Piece(*row) for row in zip(*columns.values(), strict=True)]
        return Shard(pieces, None if rows < 0 else rows)

    def rows(self, number: int) -> int:
        """The number of rows of a shard, from the file's footer; 0 where only reading the source tells."""
        file, group = self._place(number)
        statistics = file.metadata.row_group(group).column(ROWS).statistics
        return max(0, statistics.min) if statistics and statistics.has_min_max else 0

    def weights(self, shards: int, seen: Callable[[], None] = lambda: None) -> NDArray[np.int64]:
        """The sizes (shards,) of the shards' containers, bytes, 0 where unknown. A number of rows that is not known is
        estimated from them. ``seen`` is called before each file."""
        found = np.zeros(shards, np.int64)
        done = 0
        while done < shards:
            seen()
            file, first = self._place(done)
            groups = range(first, file.num_row_groups)
            with as_os_error():
                sizes = file.read_row_groups(list(groups), columns=["size"]).column(0).to_numpy()
            ends = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in groups)])
            found[done : done + len(groups)] = np.diff(np.cumsum([0, *np.maximum(sizes, 0)])[ends])
            done += len(groups)
        return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._handle is not None:  # parquet closes what it has opened
            self._handle.close()
        self._part, self._file, self._handle = -1, None, None

    def _place(self, number: int) -> tuple[Any, int]:
        """The file that a shard stands in, open, and its row group there."""
        part, group = (0, number) if self._is_one else divmod(number, PART)
        if part != self._part:
            self.close()
            try:
                self._open(part)
            except FileNotFoundError:
                if part == 0:
                    raise
                self._is_one = True
                return self._place(number)
        if group >= self._file.num_row_groups:
            raise OSError(f"{self._output.path(part_name(part))} has no shard {number}")
        return self._file, group

    def _open(self, part: int) -> None:
        path = self._output.path(part_name(part))
        if self._output.protocol == LOCAL:
            self._file = pq.ParquetFile(path)
        else:  # the footer in one request, the row group in another
            self._handle = open_file(self._output.protocol, path, cache="none")
            with as_os_error():
                self._file = pq.ParquetFile(self._handle, pre_buffer=True)
        self._part = part
