"""An index of an output's vectors: usearch's graphs (HNSW), in files of ``index/`` that a search maps into memory.

::

    index/images.json                which shards each part holds, by the checksums of their vectors
    index/images_TOKEN.usearch       a part: a graph of whole shards, about a million rows

A part is used as long as the output still has its shards as they were. Shards that no part holds are compared one by
one, so an index that is behind makes a search slower and not wrong. Built again, it gains parts for what is missing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.markers import Marker
from clip_queue.bulk.output.stored_shards import StoredShards
from clip_queue.bulk.output.table_layout import place, row_id
from clip_queue.shared.errors import BadInput
from clip_queue.shared.fields import known_fields
from clip_queue.shared.vectors import Vector

EXACT_BELOW = 100_000  # rows; so many are compared one by one in a fraction of a second
PART_ROWS = 1_000_000  # rows after which a part is full: while it is built it is in memory
MOST_NEAREST = 1000  # rows beyond which a graph is no quicker than comparing all
BLOCK_ROWS = 4096  # rows that are added at once

# Of the graph: neighbours a row has, and how many candidates building and searching look at.
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 32, 128, 1024

FOLDER = "index"


@dataclass(frozen=True)
class Part:
    """A file of the index: its size, its rows, and the shards that it holds, each with its vectors' checksum."""

    file: str
    bytes: int
    rows: int
    shards: dict[str, str]


class VectorIndex:
    """The index of the images or the texts (``among``) of an output; ``markers``: the shards that are complete now.

    What is broken, cut short or of another release counts as not there.
    """

    def __init__(self, output: Output, stored: StoredShards, among: str, markers: list[Marker]) -> None:
        self._output, self._stored, self._about = output, stored, f"{FOLDER}/{among}.json"
        self._prefix = f"{FOLDER}/{among}_"
        self._graphs: dict[str, Any] = {}  # of the parts, mapped when they are first searched
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
                graph = self._graphs.get(part.file) or _usearch().Index.restore(str(self._path(part.file)), view=True)
                self._graphs[part.file] = graph
                graph.expansion_search = max(EXPANSION_SEARCH, 2 * count)
                keys = graph.search(query, count).keys
            except (RuntimeError, ValueError, AttributeError) as error:
                raise BadInput(f"{part.file} is broken ({error}): remove it, or search with --exact") from error
            for shard, row in (place(int(key)) for key in keys):
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
        usearch, missing = _usearch(), self.missing
        total = max(1, sum(self._rows[shard] for shard in missing))
        done = 0
        for shards in _grouped(missing, self._rows, part_rows):
            graph = usearch.Index(
                ndim=self._stored.dimension,
                metric="cos",
                dtype="f16",
                connectivity=CONNECTIVITY,
                expansion_add=EXPANSION_ADD,
                expansion_search=EXPANSION_SEARCH,
            )
            for shard in shards:
                for start, block in self._stored.blocks(shard, BLOCK_ROWS * self._stored.dimension):
                    keys = row_id(shard, start) + np.arange(len(block), dtype=np.uint64)
                    sound = np.isfinite(block).all(axis=1) & block.any(axis=1)
                    graph.add(keys[sound], block[sound])
                    done += len(block)
                    show(min(1.0, done / total))
            self._publish(graph, shards)
        if self._all != self.parts:
            self._save()
        self._sweep()
        return done

    def _publish(self, graph: Any, shards: list[int]) -> None:
        name = f"{self._prefix}{secrets.token_hex(6)}.usearch"
        with self._output.staged(name) as path:
            graph.save(str(path))
            size = path.stat().st_size
        checksums = {str(shard): self._checksums[shard] for shard in shards}
        self.parts.append(Part(name, size, sum(self._rows[shard] for shard in shards), checksums))
        self._save()

    def _save(self) -> None:
        self._output.write(self._about, orjson.dumps({"version": 1, "parts": [asdict(part) for part in self.parts]}))
        self._all = list(self.parts)

    def _sweep(self) -> None:
        """Remove the parts that are listed no more."""
        known = {part.file for part in self.parts}
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
        return same and self._output.size(part.file) == part.bytes

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


def _usearch() -> Any:
    try:
        from usearch import index
    except ModuleNotFoundError:
        raise BadInput("an index needs usearch: pip install 'clip-queue[search]'") from None
    return index
