"""The near duplicates in an output: groups of rows that cosines above a threshold connect.

Every row is compared with every other, a block of rows with a block of rows. Memory: two blocks, their cosines, and
eight bytes a row of the output.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from clip_queue.bulk.output.stored_shards import StoredShards
from clip_queue.shared.errors import BadInput
from clip_queue.shared.vectors import Matrix, normalise

Rows = NDArray[np.int64]  # (n,), rows of the output, numbered through from 0

OUTER, INNER = 8192, 1024  # rows that are compared at once: their cosines take 32 MiB
PAIRS = 2**20  # pairs that are joined at once
ROUNDING = 2e-6  # by which the cosine of two equal vectors can be less than 1


class NearDuplicates:
    """``rows``: the number of rows of each shard that is compared; ``keep``: which rows of a shard count, None: all."""

    def __init__(
        self,
        stored: StoredShards,
        rows: dict[int, int],
        keep: Callable[[int], NDArray[np.bool_]] | None = None,
        *,
        outer: int = OUTER,
        inner: int = INNER,
    ) -> None:
        self._stored, self._keep, self._outer, self._inner = stored, keep, outer, inner
        self._shards = list(rows)
        self._starts = np.concatenate([[0], np.cumsum([rows[shard] for shard in self._shards], dtype=np.int64)])

    def groups(self, threshold: float, show: Callable[[float], None]) -> tuple[Rows, Rows]:
        """The rows that are in a group, group by group in the order of their first rows, and the first row of each
        one's group. ``show`` gets the share that is done.

        Raises:
            BadInput: the threshold is not a cosine above 0, or a file is not what its marker says.
            OSError: it cannot be read.
        """
        if not 0 < threshold <= 1:
            raise BadInput(f"near duplicates above {threshold:g}: a cosine above 0, and at most 1")
        total = int(self._starts[-1])
        parent = np.arange(total, dtype=np.int64)
        for start, block in self._blocks(0, self._outer):
            block = block.copy()
            for other, more in self._blocks(start, self._inner):
                _compare(parent, start, block, other, more, threshold - ROUNDING)
                done, part = start / total, (other + len(more) - start) / max(1, total - start) * len(block) / total
                show(1 - (1 - min(1.0, done + part)) ** 2)
        show(1.0)
        for first in range(0, total, self._outer):
            parent[first : first + self._outer] = _roots(parent, parent[first : first + self._outer])
        members = np.flatnonzero(parent != np.arange(total))
        grouped = np.union1d(members, parent[members])
        order = np.argsort(parent[grouped], kind="stable")
        return grouped[order], parent[grouped][order]

    def place(self, row: int) -> tuple[int, int]:
        """The shard of a row, and its number there."""
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._shards[at], row - int(self._starts[at])

    def vectors(self, rows: Rows) -> Matrix:
        """The unit vectors (n, dimension) of some rows."""
        asked = np.unique(rows)
        places = [self.place(int(row)) for row in asked]
        parts = [
            self._stored.vectors(shard, [row for _, row in group])
            for shard, group in groupby(places, key=lambda place: place[0])
        ]
        return normalise(np.concatenate(parts))[np.searchsorted(asked, rows)]

    def _blocks(self, first: int, size: int) -> Iterator[tuple[int, Matrix]]:
        """The unit vectors of the rows from ``first`` on, about ``size`` at a time, each block with its first row. Rows
        without a direction, or left out, are zeros."""
        at = bisect_left(self._starts.tolist(), first + 1) - 1
        for shard, start in zip(self._shards[at:], self._starts[at:].tolist(), strict=False):
            keep = self._keep(shard) if self._keep else None
            for offset, block in self._stored.blocks(shard, size * self._stored.dimension):
                skipped = max(0, first - start - offset)
                if skipped < len(block):
                    unit = normalise(block)
                    unit[~np.isfinite(unit).all(axis=1)] = 0
                    if keep is not None:
                        unit[~keep[offset : offset + len(unit)]] = 0
                    yield start + offset + skipped, unit[skipped:]


def _compare(parent: Rows, start: int, block: Matrix, other: int, more: Matrix, threshold: float) -> None:
    """Join the rows of two blocks whose cosine is above ``threshold``; each pair once."""
    size = max(1, PAIRS // len(more))
    cosines = block @ more.T
    for first in range(0, len(block), size):
        a, b = np.nonzero(cosines[first : first + size] >= threshold)
        a, b = a + start + first, b + other
        later = a < b
        if later.any():
            _join(parent, a[later], b[later])


def _join(parent: Rows, a: Rows, b: Rows) -> None:
    """Make one group of the groups of each pair; a group's root is its first row."""
    while True:
        a, b = _roots(parent, a), _roots(parent, b)
        apart = a != b
        if not apart.any():
            return
        a, b = a[apart], b[apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))


def _roots(parent: Rows, rows: Rows) -> Rows:
    while True:
        above = parent[rows]
        if (above == rows).all():
            return rows
        rows = above
