"""An index of an output's vectors: usearch's graphs (HNSW), in files of ``index/`` that a search maps into memory.

::

    index/images.json                which shards each part holds, by the checksums of their vectors
    index/images_TOKEN.usearch       a part: a graph of whole shards, about a million rows
    index/images_TOKEN.twins.npy     of rows that are equal to the last bit, all but the first, if there are any

A part is used as long as the output still has its shards as they were. Shards that no part holds are compared one by
one, so an index that is behind makes a search slower and not wrong. Built again, it gains parts for what is missing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import orjson

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.markers import Marker
from clip_queue.bulk.output.stored_shards import StoredShards
from clip_queue.bulk.output.table_layout import place, row_id
from clip_queue.bulk.search.graph import BLOCK_ROWS, Graph, GraphBuilder, usearch
from clip_queue.shared.errors import BadInput
from clip_queue.shared.fields import known_fields
from clip_queue.shared.vectors import Vector

EXACT_BELOW = 100_000  # rows; so many are compared one by one in a fraction of a second
PART_ROWS = 1_000_000  # rows after which a part is full: while it is built it is in memory
MOST_NEAREST = 1000  # rows beyond which a graph is no quicker than comparing all

FOLDER = "index"


@dataclass(frozen=True)
class Part:
    """A file of the index: its size, its rows, the shards that it holds, each with its vectors' checksum, and the size
    of the file of its twins, 0 if there is none."""

    file: str
    bytes: int
    rows: int
    shards: dict[str, str]
    twins: int = 0

    @property
    def twins_file(self) -> str:
        return self.file.removesuffix(".usearch") + ".twins.npy"

    @property
    def files(self) -> dict[str, int]:
        """All its files, each with its size."""
        return {self.file: self.bytes} | ({self.twins_file: self.twins} if self.twins else {})


class VectorIndex:
    """The index of the images or the texts (``among``) of an output; ``markers``: the shards that are complete now.

    What is broken, cut short or of another release counts as not there.
    """

    def __init__(self, output: Output, stored: StoredShards, among: str, markers: list[Marker]) -> None:
        self._output, self._stored, self._about = output, stored, f"{FOLDER}/{among}.json"
        self._prefix = f"{FOLDER}/{among}_"
        self._graphs: dict[str, Graph] = {}  # of the parts, mapped when they are first searched
        self._rows = {marker["shard"]: marker["rows"] for marker in markers if marker["rows"]}
        self._checksums: dict[int, str] = {}
        for marker in markers:
            if marker["rows"]:
                file = marker["files"].get(stored.vectors_file(marker["shard"]), {})
                self._checksums[marker["shard"]] = str(file.get("blake2b", file.get("bytes")))
        self._all = self._listed()
        self.parts = [part for part in self._all if self._is_current(part)]

    @property
    def shards(self) -> set[int]:
        """The shards that can be searched by the index."""
        return {int(shard) for part in self.parts for shard in part.shards}

    @property
    def missing(self) -> list[int]:
        """The shards that the index does not hold as they are now."""
        return sorted(self._rows.keys() - self.shards)

    @property
    def is_there(self) -> bool:
        return bool(self._all)

    @property
    def is_usable(self) -> bool:
        """Whether some of it is as the output is, and can be read here."""
        return bool(self.parts) and is_installed()

    def nearest(self, query: Vector, count: int) -> dict[int, list[int]]:
        """About the ``count`` rows of each part nearest to a unit vector: row numbers by shard, ascending.

        Raises:
            BadInput: usearch is not installed, or a part is broken.
        """
        found: dict[int, list[int]] = {}
        for part in self.parts:
            try:
                if part.file not in self._graphs:
                    twins = self._path(part.twins_file) if part.twins else None
                    self._graphs[part.file] = Graph(self._path(part.file), twins)
                keys = self._graphs[part.file].nearest(query, count)
            except (RuntimeError, ValueError, AttributeError) as error:
                raise BadInput(f"{part.file} is broken ({error}): remove it, or search with --exact") from error
            for shard, row in map(place, keys):
                found.setdefault(shard, []).append(row)
        return {shard: sorted(rows) for shard, rows in found.items()}

    def build(self, show: Callable[[float], None], *, part_rows: int = PART_ROWS) -> int:
        """Add what is missing; returns the number of rows that were added. ``show`` gets the share that is done.

        Raises:
            BadInput: the output is not on this machine, or usearch is not installed, or a file is broken.
            OSError: it cannot be read or written.
        """
        if not self._output.local:
            raise BadInput(f"{self._output.url} is not on this machine: an index is read in place, so it has to be")
        usearch()
        missing = self.missing
        steps = 2 * sum(self._rows[shard] for shard in missing)  # every row is added, and then looked up
        rows, done = 0, 0

        def did(count: int) -> None:
            nonlocal done
            done += count
            show(min(1.0, done / max(1, steps)))

        for shards in _grouped(missing, self._rows, part_rows):
            graph = GraphBuilder(self._stored.dimension)
            for shard in shards:
                for start, block in self._stored.blocks(shard, BLOCK_ROWS * self._stored.dimension):
                    graph.add(row_id(shard, start) + np.arange(len(block), dtype=np.uint64), block)
                    rows += len(block)
                    did(len(block))
            graph.look_up(did)
            did(2 * rows - done)  # of those that are not in the graph
            self._publish(graph, shards)
        if self._all != self.parts:
            self._save()
        self._sweep()
        return rows

    def _publish(self, graph: GraphBuilder, shards: list[int]) -> None:
        checksums = {str(shard): self._checksums[shard] for shard in shards}
        rows = sum(self._rows[shard] for shard in shards)
        part = Part(f"{self._prefix}{secrets.token_hex(6)}.usearch", 0, rows, checksums)
        twins = graph.twins
        if len(twins):
            with self._output.staged(part.twins_file) as path, path.open("wb") as file:
                np.save(file, twins)
        with self._output.staged(part.file) as path:
            graph.save(path)
        size, of_twins = self._output.size(part.file) or 0, self._output.size(part.twins_file) or 0
        self.parts.append(replace(part, bytes=size, twins=of_twins))
        self._save()

    def _save(self) -> None:
        self._output.write(self._about, orjson.dumps({"version": 1, "parts": [asdict(part) for part in self.parts]}))
        self._all = list(self.parts)

    def _sweep(self) -> None:
        """Remove the parts that are listed no more."""
        known = {file for part in self.parts for file in part.files}
        for name in self._output.listed(FOLDER):
            file = f"{FOLDER}/{name}"
            if file.startswith(self._prefix) and file not in known:
                self._path(file).unlink(missing_ok=True)

    def _listed(self) -> list[Part]:
        if not self._output.local:
            return []
        try:
            raw = orjson.loads(self._output.read(self._about) or b"{}")
            return [Part(**known_fields(Part, part)) for part in raw.get("parts", [])]
        except (ValueError, TypeError, AttributeError):
            return []

    def _is_current(self, part: Part) -> bool:
        same = all(self._checksums.get(int(shard)) == checksum for shard, checksum in part.shards.items())
        return same and all(self._output.size(file) == size for file, size in part.files.items())

    def _path(self, name: str) -> Path:
        return Path(self._output.path(name))


def _grouped(shards: list[int], rows: dict[int, int], most: int) -> Iterator[list[int]]:
    """Shards in groups of about ``most`` rows."""
    group: list[int] = []
    for shard in shards:
        group.append(shard)
        if sum(rows[s] for s in group) >= most:
            yield group
            group = []
    if group:
        yield group


def is_installed() -> bool:
    try:
        return find_spec("usearch") is not None
    except ValueError:
        return False
