"""Summaries of markers: once all 128 shards of a part of a plan are complete, their markers stand in one file as well.

A run that is resumed then reads one file where it would ask for 128. A summary is no more than a copy: it is removed
before one of its shards gets another marker.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from clip_queue.bulk.output.layout import PLAN_PARTS, Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.plan_file import PART

MAX_OPEN = 8  # parts whose markers are held until they are complete

_NAME = re.compile(r"complete_(\d+)\.json")


def name(part: int) -> str:
    return f"{PLAN_PARTS}/complete_{part}.json"


def listed(output: Output) -> set[int]:
    """The parts that have a summary."""
    return {int(found[1]) for file in output.listed(PLAN_PARTS) if (found := _NAME.fullmatch(file))}


def read(output: Output, plan: RunPlan, part: int) -> dict[int, dict[str, Any]]:
    """The markers of a part by their shards; none if the summary is gone, broken, or another plan's."""
    data = output.read(name(part))
    try:
        raw = orjson.loads(data or b"{}")
        return {marker["shard"]: marker for marker in raw["markers"]} if raw.get("plan") == plan.id else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def drop(output: Output, plan: RunPlan, shard: int) -> None:
    """To be called before a shard gets another marker."""
    if shard // PART < plan.shards // PART:
        output.remove(name(shard // PART))


class Summaries:
    """Writes the summaries of a run, as its shards are counted."""

    def __init__(self, output: Output, plan: RunPlan) -> None:
        self._output, self._plan = output, plan
        self._open: dict[int, dict[int, dict[str, Any]]] = {}
        self._passed: set[int] = set()  # parts that stay without, for want of a shard

    def add(self, marker: dict[str, Any]) -> None:
        """Count a complete shard; the last of a part writes its summary. Raises :class:`OSError`."""
        part = marker["shard"] // PART
        if part >= self._plan.shards // PART or part in self._passed:
            return
        markers = self._open.setdefault(part, {})
        markers[marker["shard"]] = marker
        if len(markers) == PART:
            del self._open[part]
            data = orjson.dumps({"plan": self._plan.id, "markers": [markers[shard] for shard in sorted(markers)]})
            if len(data) != self._output.size(name(part)):
                self._output.write(name(part), data)
        elif len(self._open) > MAX_OPEN:
            oldest = min(self._open)
            del self._open[oldest]
            self._passed.add(oldest)
