"""What the store holds now, and what it has counted: for those who watch the service."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from clip_queue.shared.runs import led, model_of
from clip_queue.shared.store import Op, call


@dataclass(frozen=True)
class LaneCensus:
    """A lane of a model. ``items``: those of unfinished jobs; ``oldest``: how long the oldest job that waits for a
    worker has waited, seconds."""

    model: str
    lane: str
    items: int
    waiting: int
    oldest: float

    def with_those_of(self, other: LaneCensus) -> LaneCensus:
        """Both as one."""
        oldest = max(self.oldest, other.oldest)
        return replace(self, items=self.items + other.items, waiting=self.waiting + other.waiting, oldest=oldest)


@dataclass(frozen=True)
class RunCensus:
    """A bulk run under way. ``rate``: rows a second; ``stalled``: since when its rows have not grown, seconds."""

    model: str
    rate: float
    stalled: float


@dataclass(frozen=True)
class Census:
    """``held``: bytes of jobs and results; ``limit``: most of them, None where nothing is known of it yet.

    ``unfinished``: jobs by model. ``totals``: how often something has happened, by event, lane and model: jobs that
    ended, by state; jobs ``requeued`` for a lost worker; ``resent``, whose message may have been lost (those of other
    lanes than the interactive one are sent again while they wait, as a matter of course); ``worker_lost``, of no model;
    ``rows_done`` and ``rows_failed`` of shards. ``runs``: the bulk runs under way.
    """

    held: int
    limit: int | None
    lanes: list[LaneCensus]
    unfinished: dict[str, int]
    totals: dict[tuple[str, str, str], int] = field(default_factory=dict)
    runs: list[RunCensus] = field(default_factory=list)


def census(models: Iterable[str]) -> Op[Census]:
    """The state of the lanes of ``models``, in one round trip. Shards of runs that workers lead count as others do."""
    names = list(models)
    return Op([call("census", *names, *map(led, names))], _parse)


def _parse(replies: list[Any]) -> Census:
    held, limit, totals, runs, *models = replies[0]
    lanes: dict[tuple[str, str], LaneCensus] = {}
    unfinished: Counter[str] = Counter()
    for name, jobs, *of_model in models:
        model = model_of(name.decode())
        unfinished[model] += jobs
        for lane, items, waiting, oldest in of_model:
            found = LaneCensus(model, lane.decode(), int(items), waiting, max(0, int(oldest)) / 1000)
            before = lanes.get((model, found.lane))
            lanes[model, found.lane] = found if before is None else found.with_those_of(before)
    counted: Counter[tuple[str, str, str]] = Counter()
    for key, number in zip(totals[::2], totals[1::2], strict=True):
        event, in_lane, name = key.decode().split(":", 2)  # a name may hold more colons
        counted[event, in_lane, model_of(name)] += int(number)
    found_runs = [_run(*run) for run in runs]
    return Census(int(held), int(limit) if limit else None, [*lanes.values()], unfinished, counted, found_runs)


def _run(model: bytes, stalled: bytes, progress: bytes) -> RunCensus:
    try:
        rate = float(json.loads(progress)["rows_per_s"])
    except (ValueError, TypeError, KeyError):  # it has only begun, or another release says it otherwise
        rate = 0.0
    return RunCensus(model.decode(), rate, int(stalled) / 1000)


def memory() -> Op[tuple[int, int]]:
    """The memory that Redis uses, and its ``maxmemory`` (0: none), bytes. Its user may be forbidden to ask."""

    def parse(replies: list[Any]) -> tuple[int, int]:
        return int(replies[0].get("used_memory", 0)), int(replies[0].get("maxmemory", 0))

    return Op([("INFO", "memory")], parse)
