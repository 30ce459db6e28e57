"""The rows of an output that are nearest to a text or an image: every vector is compared, a block at a time, or those
that an index finds.

Memory does not grow with the output: a shard is mapped, a block of it is made float32, and only the best so far stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.markers import complete_markers
from clip_queue.bulk.output.stored_shards import StoredShards
from clip_queue.bulk.output.vectors import BLOCK_NUMBERS
from clip_queue.bulk.search.near_duplicates import NearDuplicates
from clip_queue.bulk.search.query import embed_query, unit_query
from clip_queue.bulk.search.row_filter import RowFilter
from clip_queue.bulk.search.vector_index import EXACT_BELOW, MOST_NEAREST, VectorIndex, is_installed
from clip_queue.shared.errors import BadInput
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import Matrix, Vector

KINDS = {"images": "image", "texts": "text"}  # what can be searched, and its name in Output.names
TOP = 12  # rows that are shown by default
CANDIDATES = 2  # rows that an index is asked for, a row that is wanted: their cosines are computed anew
HITS_AT_ONCE = 4096  # near duplicates whose metadata are read together


@dataclass(frozen=True)
class Hit:
    """A row that was found. ``score`` is the cosine; ``columns`` are the source's own; ``rank`` counts from 1.

    Of near duplicates, ``rank`` is the number of the group, and ``score`` the cosine with the first row of it.
    ``vector`` is there if it was asked for.
    """

    rank: int
    score: float
    shard: int
    row: int
    image_path: str | None
    caption: str | None
    columns: dict[str, Any]
    vector: Vector | None = field(default=None, compare=False)


def search(
    output: str,
    text: str | None = None,
    *,
    image: bytes | None = None,
    top: int | None = None,
    among: str | None = None,
    filter: str | None = None,
    vectors: bool = False,
    near_duplicates: float | None = None,
    exact: bool = False,
    show: Callable[[float], None] = lambda share: None,
    model: str | None = None,
    settings: Settings | None = None,
) -> list[Hit]:
    """The ``top`` rows of an output that are nearest to a text or to an encoded image, best first.

    Args:
        top: most rows; by default :data:`TOP`.
        among: ``images`` or ``texts``; by default images where the output has them.
        filter: only rows that meet this condition on their metadata, an SQL expression of DuckDB's.
        vectors: hits have their vectors, as they are stored.
        near_duplicates: instead of a text or an image, a cosine: all rows that have another one at least that near,
            group by group.
        exact: compare every row, also where there is an index.
        show: gets the share of the comparisons for ``near_duplicates`` that is done.
        model: the model as NAME=SOURCE, where the manifest does not tell its source
            (:func:`clip_queue.bulk.search.query.spec_of`).

    Raises:
        BadInput: no such output, nothing in it yet, another model's vectors, a filter that does not fit, or a query
            that cannot be embedded.
        OSError: the output cannot be read.
    """
    index = Index(output, among, filter)
    if near_duplicates is not None:
        if any(each is not None for each in (text, image, top, model)):
            raise BadInput("near duplicates are found without a text or an image, top and model: leave them out")
        return list(index.near_duplicates(near_duplicates, show, vectors=vectors))
    query = embed_query(index.model, text, image, model, settings or Settings())
    return index.nearest(query, TOP if top is None else top, vectors=vectors, exact=exact)


class Index:
    """An output that can be searched; of an unfinished output, the shards that are complete."""

    def __init__(
        self,
        url: str,
        among: str | None = None,
        filter: str | None = None,
        *,
        block_numbers: int = BLOCK_NUMBERS,
        exact_below: int = EXACT_BELOW,
    ) -> None:
        """An output as it is now.

        Args:
            filter: a condition on the rows.
            block_numbers: how many numbers are made float32 at a time.
            exact_below: an output of fewer rows is searched without an index.

        Raises:
            BadInput: there is nothing to search.
        """
        self._block_numbers, self._exact_below = block_numbers, exact_below
        self.output = Output(url)
        found = manifest.load(self.output)
        if found is None:
            raise BadInput(f"{url} has no manifest.json: it is not an output of `clip-queue embed`")
        self.plan = found.plan
        there = {"images": bool(self.plan.source.images), "texts": bool(self.plan.source.texts)}
        self.among = among or ("images" if there["images"] else "texts")
        if self.among not in KINDS:
            raise BadInput(f"{among!r} cannot be searched: choose images or texts")
        if not there[self.among]:
            raise BadInput(
                f"{url} has no vectors of {self.among}: search its {'texts' if there['texts'] else 'images'}"
            )
        self.stored = StoredShards(self.output, self.plan, KINDS[self.among])
        self._markers = list(complete_markers(self.output, self.plan))
        if not self._markers:
            raise BadInput(f"none of the {self.plan.shards} shards of {url} is finished yet")
        self._rows: dict[int, int] = {marker["shard"]: marker["rows"] for marker in self._markers}
        self.vector_index = VectorIndex(self.output, self.stored, self.among, self._markers)
        self._filter = RowFilter(filter) if filter is not None else None
        if self._filter and (some := next((marker for marker in self._markers if marker["rows"]), None)):
            self._filter.keep(self.stored, some["shard"])  # so that a wrong one is told before a model is loaded

    @property
    def model(self) -> ModelInfo:
        return self.plan.model

    @property
    def shards(self) -> int:
        """Shards that are complete; ``plan.shards`` is how many there will be."""
        return len(self._markers)

    @property
    def rows(self) -> int:
        return sum(marker["rows"] for marker in self._markers)

    def rows_of(self, shard: int) -> int:
        """The rows of a shard; 0: there is no such shard, or it is not complete."""
        return self._rows.get(shard, 0)

    @property
    def uses_index(self) -> bool:
        """Whether a search for few rows goes by the index: it can be read, the output is large, nothing is filtered."""
        return self.vector_index.is_usable and self.rows >= self._exact_below and self._filter is None

    @property
    def notice(self) -> str:
        """What is to be said about the index of a large output; "": nothing."""
        if self.rows < self._exact_below or not self.vector_index.is_there:
            return ""
        missing = len(self.vector_index.missing)
        if not is_installed():
            return "there is an index, and no usearch to read it (pip install 'clip-queue[search]'): all is compared"
        if not missing:
            return ""
        shards = f"{missing:,} of {self.shards:,} shards"
        return f"the index is behind: {shards} are compared row by row. `clip-queue index` adds them"

    def build_index(self, show: Callable[[float], None]) -> int:
        """Add to the index of a large output what is not in it yet; returns the number of rows that were added.

        Raises:
            BadInput: the output is small, or not on this machine, or usearch is not installed.
            OSError: the output cannot be read or written.
        """
        if self.rows < self._exact_below:
            raise BadInput(f"{self.rows:,} rows are compared in no time: from {self._exact_below:,} on an index helps")
        return self.vector_index.build(show)

    def nearest(self, query: Vector, top: int, *, vectors: bool = False, exact: bool = False) -> list[Hit]:
        """The ``top`` rows with the largest cosines, best first, equal ones in the output's order.

        Where an index is used (:attr:`uses_index`) it may miss some, unless ``exact``; the cosines are exact.

        Rows without a direction (zeros: no caption) and those that hold NaN or infinity never come up.

        Raises:
            BadInput: a file of the output is not what its marker says.
            OSError: it cannot be read.
        """
        if top < 1:
            raise BadInput(f"top is {top}: at least 1")
        direction = unit_query(query)
        best = _Best(top)
        by_index = not exact and self.uses_index and top <= MOST_NEAREST
        candidates = self.vector_index.nearest(direction, CANDIDATES * top + 16) if by_index else {}
        indexed = self.vector_index.shards if by_index else set()
        for marker in self._markers:
            shard = marker["shard"]
            if shard in candidates:
                rows = np.array(candidates[shard], dtype=np.int64)
                best.add(shard, rows, _cosines(self.stored.vectors(shard, candidates[shard]), direction))
            if shard in indexed or not marker["rows"]:  # without rows, all of this shard failed: it has no vectors
                continue
            for start, cosines in self._cosines(shard, direction):
                best.add(shard, start + np.arange(len(cosines)), cosines)
        places = [(int(shard), int(row)) for shard, row in best.places]
        ranks = range(1, len(places) + 1)
        return self._hits(ranks, best.scores, places, vectors=vectors)

    def near_duplicates(
        self, threshold: float, show: Callable[[float], None], *, vectors: bool = False
    ) -> Iterator[Hit]:
        """The rows that have another row whose cosine with theirs is at least ``threshold``, group by group. A row
        belongs to a group that holds one such row, so two rows of a group may be less alike. ``show`` gets the share of
        the comparisons that is done.

        Raises:
            BadInput, OSError: as :meth:`nearest`.
        """
        rows = {marker["shard"]: marker["rows"] for marker in self._markers if marker["rows"]}
        found = NearDuplicates(self.stored, rows, self._kept if self._filter else None)
        members, firsts = found.groups(threshold, show)
        numbers = np.cumsum(np.diff(firsts, prepend=-1) != 0)
        for start in range(0, len(members), HITS_AT_ONCE):
            part = slice(start, start + HITS_AT_ONCE)
            scores = np.einsum("ij,ij->i", found.vectors(members[part]), found.vectors(firsts[part]))
            places = [found.place(int(row)) for row in members[part]]
            yield from self._hits(numbers[part].tolist(), scores, places, vectors=vectors)

    def _kept(self, shard: int) -> NDArray[np.bool_]:
        """Which rows of a shard meet the filter."""
        assert self._filter is not None
        return self._filter.keep(self.stored, shard)

    def _cosines(self, shard: int, query: Vector) -> Iterator[tuple[int, Vector]]:
        """Cosines (n,) of a shard's rows with ``query``, a block at a time, each with the number of its first row."""
        keep = self._kept(shard) if self._filter else None
        if keep is not None and not keep.any():
            return
        for start, block in self.stored.blocks(shard, self._block_numbers):
            cosines = _cosines(block, query)
            if keep is not None:
                cosines[~keep[start : start + len(cosines)]] = np.nan
            yield start, cosines

    def _hits(
        self, ranks: Sequence[int], scores: Vector, places: Sequence[tuple[int, int]], *, vectors: bool
    ) -> list[Hit]:
        """Hits of some rows, with their metadata and, with ``vectors``, their vectors."""
        columns: dict[tuple[int, int], dict[str, Any]] = {}
        stored: dict[tuple[int, int], Vector] = {}
        for shard in sorted({shard for shard, _ in places}):
            rows = sorted(row for s, row in places if s == shard)
            columns |= {(shard, row): values for row, values in self.stored.metadata(shard, rows).items()}
            if vectors:
                stored |= {(shard, row): v for row, v in zip(rows, self.stored.vectors(shard, rows), strict=True)}
        hits = []
        for rank, place, score in zip(ranks, places, scores, strict=True):
            own = columns[place]
            path_and_caption = own.pop("image_path", None), own.pop("caption", None)
            own.pop("error", None)
            hits.append(Hit(rank, float(score), *place, *path_and_caption, own, stored.get(place)))
        return hits


def _cosines(block: Matrix, query: Vector) -> Vector:
    """Cosines (n,) of the rows of a block with a unit vector."""
    # einsum adds up every row the same way wherever it stands, so equal rows are equal hits; BLAS does not.
    dots = np.einsum("ij,j->i", block, query)
    with np.errstate(invalid="ignore", divide="ignore"):
        out: Vector = dots / np.sqrt(np.einsum("ij,ij->i", block, block))
    return out


class _Best:
    """The best rows so far: ``scores`` (k,), descending, and ``places`` (k, 2), shard and row."""

    def __init__(self, top: int) -> None:
        self._top = top
        self.scores = np.empty(0, dtype=np.float32)
        self.places = np.empty((0, 2), dtype=np.int64)

    def add(self, shard: int, numbers: NDArray[np.int64], cosines: Vector) -> None:
        """Look at rows of a shard by their numbers (n,), ascending, and their cosines (n,)."""
        # Of rows with equal scores the first is kept; NaN is never kept.
        rows = np.flatnonzero(cosines > (self.scores[-1] if len(self.scores) == self._top else -np.inf))
        if not len(rows):
            return
        scores = np.concatenate([self.scores, cosines[rows]])
        places = np.concatenate([self.places, np.stack([np.full_like(rows, shard), numbers[rows]], axis=1)])
        order = np.argsort(-scores, kind="stable")[: self._top]
        self.scores, self.places = scores[order], places[order]
