"""Shard markers: the file that is written last says that its shard is complete, with counts and checksums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan

EXAMPLES = 3  # failed rows that a marker and a report name for each reason

Marker = dict[str, Any]


def never() -> bool:
    return False


def marker_if_complete(output: Output, plan: RunPlan, shard: int) -> Marker | None:
    """A shard's marker, if the shard is complete: it is this plan's, and each file has the size it was written with."""
    data = output.read(output.names(shard, plan.shards)["shard"])
    if data is None:
        return None
    try:
        marker: Marker = orjson.loads(data)
        sizes = {name: about["bytes"] for name, about in marker["files"].items()}
    except (ValueError, KeyError, TypeError):
        return None
    if marker.get("plan") != plan.id or any(output.size(name) != size for name, size in sizes.items()):
        return None
    return marker


def complete_markers(output: Output, plan: RunPlan, should_stop: Callable[[], bool] = never) -> Iterator[Marker]:
    """The markers of the shards that are complete, in order; no more once ``should_stop``."""
    for _, marker in scan(output, plan):
        if should_stop():
            return
        if marker:
            yield marker


def scan(output: Output, plan: RunPlan, shards: range | None = None) -> Iterator[tuple[int, Marker | None]]:
    """Every shard's number, or that of each of ``shards``, with its marker; None where the shard is not complete. The
    folder is listed once."""
    listed = output.listed("shards")
    for shard in range(plan.shards) if shards is None else shards:
        name = output.names(shard, plan.shards)["shard"].rpartition("/")[2]
        yield shard, marker_if_complete(output, plan, shard) if name in listed else None
