"""A graph of vectors (usearch's HNSW) in a file, in which every row can be found.

usearch 2.26 does not promise that alone. Rows that several threads add at once are stored, and sometimes no path leads
to them (about one in 2,000; its issue 735). And rows that are equal to the last bit link to one another only, until no
path leads to any of them: of 300 equal ones up to 300 were lost. So of equal rows the graph holds the first, and a file
beside it names the others, its *twins*; and each row is looked up once the graph is whole, and added again if it is
not found.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_queue.shared.errors import BadInput
from clip_queue.shared.vectors import Matrix, Vector

BLOCK_ROWS = 4096  # rows that are added, or looked up, at once

# Of the graph: neighbours a row has, and how many candidates building, searching and looking a row up look at.
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH, EXPANSION_LOOK_UP = 32, 128, 1024, 16
NEIGHBOURS_LOOKED_AT = 8
ALIKE = 1e-3  # cosine distance that 16 bits cannot tell from none

Keys = NDArray[np.uint64]


class GraphBuilder:
    """Takes rows, each with a key of its own, and writes the graph and the twins."""

    def __init__(self, dimension: int) -> None:
        """Raises ``BadInput`` if usearch is not installed."""
        self._graph = usearch().Index(
            ndim=dimension,
            metric="cos",
            dtype="f16",
            connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_ADD,
            expansion_search=EXPANSION_SEARCH,
        )
        self._firsts: dict[bytes, int] = {}  # the key of the first of equal rows, by a checksum of the row
        self._twins: list[tuple[int, int]] = []

    def add(self, keys: Keys, rows: Matrix) -> None:
        """Add rows (n, D) under their keys (n,), all of them new. Rows of zeros, NaN or infinity are left out."""
        sound = np.flatnonzero(np.isfinite(rows).all(axis=1) & rows.any(axis=1))
        with np.errstate(over="ignore"):
            as_stored = rows.astype(np.float16)
        fresh = []
        for number in sound:
            key = int(keys[number])
            first = self._firsts.setdefault(blake2b(as_stored[number].tobytes(), digest_size=16).digest(), key)
            if first == key:
                fresh.append(number)
            else:
                self._twins.append((first, key))
        self._graph.add(keys[fresh], rows[fresh])

    def look_up(self, show: Callable[[int], None]) -> int:
        """Look every row up, and add those again, one by one, that are not found; returns how many these were.

        ``show`` gets the number of rows that were looked up, block by block.
        """
        keys: Keys = np.fromiter(self._firsts.values(), dtype=np.uint64, count=len(self._firsts))
        lost: list[Keys] = []
        for start in range(0, len(keys), BLOCK_ROWS):
            block = keys[start : start + BLOCK_ROWS]
            lost.append(self._not_found(block))
            show(len(block))
        again = np.concatenate(lost) if lost else keys
        if len(again):
            rows = self._rows(again)
            self._graph.remove(again, threads=1)
            self._graph.add(again, rows, threads=1)
        return len(again)

    def _not_found(self, keys: Keys) -> Keys:
        self._graph.expansion_search = EXPANSION_LOOK_UP
        count = min(NEIGHBOURS_LOOKED_AT, len(self._graph))
        found = self._graph.search(self._rows(keys), count)
        self._graph.expansion_search = EXPANSION_SEARCH
        # One row gives flat arrays. A row with nothing but rows like it before itself may be there as well.
        own = (found.keys.reshape(len(keys), -1) == keys[:, None]).any(axis=1)
        crowded = found.distances.reshape(len(keys), -1)[:, -1] < ALIKE
        out: Keys = keys[~own & ~crowded]
        return out

    def _rows(self, keys: Keys) -> Matrix:
        """The rows (n, D) of some keys, as the graph holds them."""
        return np.vstack(self._graph.get(keys)).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write the graph; ``OSError`` where that fails."""
        self._graph.save(str(path))

    @property
    def twins(self) -> NDArray[np.uint64]:
        """(n, 2): the key of a row in the graph, and that of a row equal to it, in ascending order."""
        return np.array(sorted(self._twins), dtype=np.uint64).reshape(-1, 2)


class Graph:
    """A graph and its twins, mapped into memory."""

    def __init__(self, path: Path, twins: Path | None) -> None:
        """Open what a :class:`GraphBuilder` wrote; ``twins`` is None where there are none.

        Raises:
            BadInput: usearch is not installed.
            RuntimeError, ValueError: a file is broken.
            OSError: it cannot be read.
        """
        self._graph = usearch().Index.restore(str(path), view=True)
        if self._graph is None:
            raise ValueError("it is no graph")
        self._twins = np.load(twins, mmap_mode="r") if twins else np.empty((0, 2), np.uint64)

    def nearest(self, query: Vector, count: int) -> list[int]:
        """The keys of about the ``count`` rows nearest to a unit vector, and of about as many twins.

        These are twins of the nearest rows, at most ``count`` of each.
        """
        self._graph.expansion_search = max(EXPANSION_SEARCH, 2 * count)
        keys: Keys = self._graph.search(query, count).keys  # the nearest first
        starts, ends = (np.searchsorted(self._twins[:, 0], keys, side) for side in ("left", "right"))
        sizes = np.minimum(ends - starts, count)
        wanted = np.flatnonzero((sizes > 0) & (np.cumsum(sizes) - sizes < count))
        twins = [self._twins[starts[i] : starts[i] + sizes[i], 1] for i in wanted]
        return [int(key) for key in np.concatenate([keys, *twins])]


def usearch() -> Any:
    """The library; ``BadInput`` if it is not installed."""
    try:
        from usearch import index
    except ModuleNotFoundError:
        raise BadInput("an index needs usearch: pip install 'clip-queue[search]'") from None
    return index
