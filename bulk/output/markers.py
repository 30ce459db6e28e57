"""Shard markers: the file that is written last says that its shard is complete, with counts and checksums.

Which shards are complete is told by listing the folders, and not by asking for one shard after the other: names tell
which markers there are, sizes whether a shard's files are whole. What the markers say is read of
:mod:`clip_queue.bulk.output.summaries`, 128 at once, and else of the marker itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from clip_queue.bulk.output import summaries
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.plan_file import PART
from clip_queue.sources.looking import go_on

EXAMPLES = 3  # failed rows that a marker and a report name for each reason

Marker = dict[str, Any]

_NAME = re.compile(r"(.*/[a-z_]+_)(\d+)(\.[a-z]+)")  # of a shard's file


def never() -> bool:
    return False


def publish(output: Output, plan: RunPlan, marker: Marker, path: Path) -> None:
    """Write a marker to ``path`` and publish it: its shard is complete."""
    summaries.drop(output, plan, marker["shard"])  # it may have an earlier marker of this shard
    path.write_bytes(orjson.dumps(marker))
    output.publish(path, plan.names(marker["shard"])["shard"])


def marker_if_complete(output: Output, plan: RunPlan, shard: int) -> Marker | None:
    """A shard's marker, if the shard is complete: it is this plan's, and each file has the size it was written with."""
    marker = _read(output, plan, shard)
    if marker is None or any(output.size(name) != about["bytes"] for name, about in marker["files"].items()):
        return None
    return marker


def complete_markers(output: Output, plan: RunPlan, should_stop: Callable[[], bool] = never) -> Iterator[Marker]:
    """The markers of the shards that are complete, in order; no more once ``should_stop``."""
    for _, marker in scan(output, plan):
        if should_stop():
            return
        if marker:
            yield marker


def scan(output: Output, plan: RunPlan, shards: Sequence[int] | None = None) -> Iterator[tuple[int, Marker | None]]:
    """The number of every shard that is to be done, or of each of ``shards``, with its marker; None where the shard is
    not complete. Each folder is listed once."""
    files = _Files(output, plan)
    summed = summaries.listed(output)
    at, found = -1, dict[int, Marker]()
    for shard in plan.numbers if shards is None else shards:
        if shard // PART != at:
            at = shard // PART
            found = summaries.read(output, plan, at) if at in summed else {}
        if not files.has_marker(shard):
            yield shard, None
            continue
        go_on()
        marker = found.get(shard) or _read(output, plan, shard)
        if marker is not None and not files.hold(marker):  # or a listing that is not up to date
            marker = marker_if_complete(output, plan, shard)
        yield shard, marker


def _read(output: Output, plan: RunPlan, shard: int) -> Marker | None:
    """A shard's marker; None: there is none, or it is another plan's or broken."""
    data = output.read(plan.names(shard)["shard"])
    if data is None:
        return None
    try:
        marker: Marker = orjson.loads(data)
        whole = all(isinstance(about["bytes"], int) for about in marker["files"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return marker if whole and marker.get("plan") == plan.id else None


class _Files:
    """The sizes of all files of a plan's shards, by listing: eight bytes a file."""

    def __init__(self, output: Output, plan: RunPlan) -> None:
        self._sizes: dict[str, NDArray[np.int64]] = {}  # by a name's beginning; -1: there is no such file
        # The markers first: what a marker that is listed names is there, and is listed after it.
        for name in reversed(plan.names(0).values()):
            before = _parts(name)[0]
            sizes = self._sizes[before] = np.full(plan.shards, -1, np.int64)
            folder = name.partition("/")[0]
            for found, size in output.sizes(folder):
                start, number, _ = _parts(f"{folder}/{found}")
                if start == before and number < plan.shards and found == _named(name, number):
                    sizes[number] = size
        self._markers = self._sizes[_parts(plan.names(0)["shard"])[0]]

    def has_marker(self, shard: int) -> bool:
        return bool(self._markers[shard] >= 0)

    def hold(self, marker: Marker) -> bool:
        """Whether each file that a marker names has the size it was written with."""
        return all(self._size(name) == about["bytes"] for name, about in marker["files"].items())

    def _size(self, name: str) -> int:
        before, number, _ = _parts(name)
        sizes = self._sizes.get(before)
        return -1 if sizes is None or number >= len(sizes) else int(sizes[number])


def _parts(name: str) -> tuple[str, int, str]:
    found = _NAME.fullmatch(name)
    return (found[1], int(found[2]), found[3]) if found else ("", 0, "")


def _named(example: str, number: int) -> str:
    """The last part of a name like ``example``, of another number."""
    found = _NAME.fullmatch(example)
    assert found
    return f"{found[1].rpartition('/')[2]}{number:0{len(found[2])}}{found[3]}"
