"""How long the stages of jobs take: a histogram for each model, lane, kind of job and stage, as a worker counts it."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Upper bounds, seconds; the last bucket has none.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass
class Histogram:
    """``counts`` by bucket, not cumulative: one more than there are bounds. ``total``: seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0


class StageTimes:
    """The histograms of a worker, for many threads. As many as models × lanes × kinds × stages."""

    def __init__(self) -> None:
        self._histograms: dict[tuple[str, str, str, str], Histogram] = {}
        self._lock = threading.Lock()

    def add(self, model: str, lane: str, kind: str, timings: Mapping[str, float]) -> None:
        """Count the stages of a job, in seconds."""
        with self._lock:
            for stage, seconds in timings.items():
                histogram = self._histograms.get((model, lane, kind, stage))
                if histogram is None:
                    histogram = self._histograms[model, lane, kind, stage] = Histogram()
                histogram.counts[bisect_left(BOUNDS, seconds)] += 1
                histogram.total += seconds

    def to_wire(self) -> list[Any]:
        """``[model, lane, kind, stage, seconds, counts]`` for each."""
        with self._lock:
            return [[*key, h.total, list(h.counts)] for key, h in self._histograms.items()]


def from_wire(raw: Sequence[Any]) -> Iterator[tuple[str, str, str, str, Histogram]]:
    """What :meth:`StageTimes.to_wire` made. One of other bounds, from another release, is passed over."""
    for each in raw:
        try:
            model, lane, kind, stage, total, counts = each
            if len(counts) == len(BOUNDS) + 1:
                yield str(model), str(lane), str(kind), str(stage), Histogram([int(n) for n in counts], float(total))
        except (TypeError, ValueError):
            continue
