"""The last ten minutes of the service, for who opens the page: a ring of figures that are counted anyway.

What the store and the workers count is the same in every API process. Requests are those of this process, or with
``PROMETHEUS_MULTIPROC_DIR`` of all on its port.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clip_queue.api.critical_task import CriticalTask
from clip_queue.api.job_client import JobClient
from clip_queue.api.metrics import Metrics
from clip_queue.shared.census import Census, census
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import FINAL
from clip_queue.shared.lane import Lane
from clip_queue.shared.stages import from_wire
from clip_queue.shared.workers import WorkerInfo

log = logging.getLogger(__name__)

INTERVAL = 5.0  # seconds between two samples
KEPT = 120  # samples: ten minutes
MOST_WORKERS = 32  # whose own figures a sample has


@dataclass(frozen=True)
class Counts:
    """All that is counted, as it stood at a moment (``at``: by the monotonic clock, seconds).

    ``requests``: those that ask for work, answered. ``failures``: of these, by code. ``ended``: jobs by state; None
    while the store has not told it.
    ``workers``: items, batches and busy seconds by worker. ``stages``: number and seconds by worker and stage, of the
    interactive lane.
    """

    at: float
    requests: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    ended: Mapping[str, int] | None = None
    workers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stages: Mapping[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)


def requests_of(metrics: Metrics) -> tuple[int, Counter[str]]:
    """Requests that were answered, and those of them that failed by code. Only POST: the others ask for no work."""
    number, failures = 0, Counter[str]()
    for family in metrics.own():
        for sample in family.samples:
            if sample.name == "clip_queue_requests_total" and sample.labels["method"] == "POST":
                number += int(sample.value)
                if code := sample.labels["code"]:
                    failures[code] += int(sample.value)
    return number, failures


def stages_of(workers: Sequence[WorkerInfo]) -> dict[tuple[str, str], tuple[float, ...]]:
    """Number and seconds of the interactive lane's jobs, by worker and stage."""
    out: dict[tuple[str, str], tuple[float, ...]] = {}
    for worker in workers:
        for _, lane, _, stage, histogram in from_wire(worker.stages):
            if lane == Lane.INTERACTIVE:
                number, seconds = out.get((worker.id, stage), (0, 0.0))
                out[worker.id, stage] = (number + sum(histogram.counts), seconds + histogram.total)
    return out


def grown(after: Mapping[Any, tuple[float, ...]], before: Mapping[Any, tuple[float, ...]]) -> dict[Any, list[float]]:
    """By how much each figure has grown."""
    return {
        key: [max(0.0, new - old) for new, old in zip(now, before.get(key, (0.0,) * len(now)), strict=True)]
        for key, now in after.items()
    }


def sample(before: Counts, now: Counts, found: Census | None, *, at: float) -> dict[str, Any]:
    """The figures of the time between two counts. ``found``: None where the store is away. ``at``: unix time, s."""
    seconds = max(now.at - before.at, 1e-3)
    # A worker that has just been seen for the first time did its work before: it is counted from now on.
    workers = {name: each for name, each in grown(now.workers, before.workers).items() if name in before.workers}
    items, batches, busy = (sum(each[i] for each in workers.values()) for i in range(3))
    times: dict[str, list[float]] = {}
    for (worker, stage), (number, spent) in grown(now.stages, before.stages).items():
        if worker in before.workers and number:
            both = times.setdefault(stage, [0.0, 0.0])
            both[0] += number
            both[1] += spent
    lanes: Counter[str] = Counter()
    for lane in found.lanes if found else ():
        lanes[lane.lane] += lane.items
    return {
        "at": round(at, 3),
        "requests_per_s": round((now.requests - before.requests) / seconds, 3),
        "failures": _more(now.failures, before.failures),
        "ended": {} if now.ended is None or before.ended is None else _more(now.ended, before.ended),
        "items_per_s": round(items / seconds, 2),
        "batch": _batch(items, batches),
        "busy": _share(busy / len(workers), seconds) if workers else None,
        "workers": {
            name: {"batch": _batch(items, batches), "busy": _share(busy, seconds)}
            for name, (items, batches, busy) in sorted(workers.items())[:MOST_WORKERS]
        },
        "stages": {stage: round(spent / number, 5) for stage, (number, spent) in times.items()},
        "lanes": dict(lanes) if found else None,
        "held_bytes": found.held if found else None,
    }


def _batch(items: float, batches: float) -> float | None:
    return round(items / batches, 2) if batches else None


def _share(busy: float, seconds: float) -> float:
    return round(min(1.0, busy / seconds), 3)


def _more(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {key: more for key, value in now.items() if (more := value - before.get(key, 0)) > 0}


class Recent:
    """The ring, filled every ``interval`` seconds by one task."""

    def __init__(self, client: JobClient, metrics: Metrics, *, interval: float = INTERVAL, kept: int = KEPT) -> None:
        self._client = client
        self._metrics = metrics
        self._interval = interval
        self._samples: deque[dict[str, Any]] = deque(maxlen=kept)
        self._task = CriticalTask("recent figures")

    def start(self) -> None:
        self._task.start(self._run())

    async def close(self) -> None:
        await self._task.close()

    def since(self, at: float) -> list[dict[str, Any]]:
        """The samples after a time (unix, seconds), oldest first."""
        return [each for each in self._samples if each["at"] > at]

    async def _run(self) -> None:
        before: Counts | None = None
        while True:
            try:
                now, found = await self._count(before)
                if before:
                    self._samples.append(sample(before, now, found, at=time.time()))
                before = now
            except Exception:  # figures for people are no reason to end a process that answers requests
                log.exception("the last seconds could not be counted")
            await asyncio.sleep(self._interval)

    async def _count(self, before: Counts | None) -> tuple[Counts, Census | None]:
        client = self._client
        found = None
        try:
            found = await client.store.execute(census(models_of(client)))
        except Unavailable as error:
            log.debug("the store cannot be counted: %s", error.message)
        requests, failures = await asyncio.to_thread(requests_of, self._metrics)  # it may read other processes' files
        workers = client.registry.workers
        counts = Counts(
            time.monotonic(),
            requests,
            failures,
            ended_by_state(found) if found else before.ended if before else None,
            {worker.id: (worker.items, worker.batches, worker.busy) for worker in workers},
            stages_of(workers),
        )
        return counts, found


def models_of(client: JobClient) -> list[str]:
    """The models that are configured or served."""
    return sorted({*client.registry.configured, *client.registry.models})


def ended_by_state(found: Census) -> Counter[str]:
    """Jobs that have ended so far, by state."""
    out: Counter[str] = Counter()
    for (event, _, _), number in found.totals.items():
        if event in FINAL:
            out[event] += number
    return out
