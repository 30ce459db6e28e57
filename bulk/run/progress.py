"""The progress of a run in numbers: for the bar, the log line and ``GET /jobs/{id}``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clip_queue.shared.workers import WorkerInfo

WINDOW = 30.0  # seconds over which the speed is averaged


@dataclass
class Progress:
    """``rows`` is the plan's total, None where only reading tells. A row is done when it is embedded; rows that failed
    are counted separately."""

    shards: int
    rows: int | None
    weight: int = 0  # bytes of all containers, where rows are not known
    resumed: int = 0  # rows of shards that were complete already
    complete: int = 0  # shards
    workers: int = 0
    device: str = ""
    away: bool = False  # the source does not answer, and the run waits for it
    busy: float | None = None  # share of the time that workers spent in forward passes
    underway: list[tuple[int, int]] = field(default_factory=list)  # done and failed of the shards that run
    reasons: dict[str, int] = field(default_factory=dict)  # rows that failed in complete shards, by code
    now: Callable[[], float] = time.monotonic  # the clock
    _done: int = 0
    _failed: int = 0
    _weighed: int = 0
    _began: float = 0.0
    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    _busy_seen: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = self.now()

    def found(self, marker: dict[str, Any], weight: int) -> None:
        """A shard that was complete before this command began."""
        self.resumed += marker["rows"] + marker["failed"]
        self._count(marker, weight)

    def finished(self, marker: dict[str, Any], weight: int) -> None:
        self._count(marker, weight)

    def _count(self, marker: dict[str, Any], weight: int) -> None:
        self.complete += 1
        self._done += marker["rows"]
        self._failed += marker["failed"]
        self._weighed += weight
        for code, about in marker.get("errors", {}).items():
            self.reasons[code] = self.reasons.get(code, 0) + about["rows"]

    @property
    def done(self) -> int:
        return self._done + sum(done for done, _ in self.underway)

    @property
    def failed(self) -> int:
        return self._failed + sum(failed for _, failed in self.underway)

    @property
    def total(self) -> int | None:
        """The number of all rows: known, or estimated from the size of the shards that are complete."""
        if self.rows is not None:
            return self.rows
        if self.complete == self.shards:
            return self._done + self._failed
        if not self._weighed:
            return None
        return max(self.done + self.failed, round((self._done + self._failed) * self.weight / self._weighed))

    @property
    def rate(self) -> float:
        """Rows a second during the last :data:`WINDOW`. Call it regularly: it measures from call to call."""
        now, count = self.now(), self.done + self.failed - self.resumed
        self._seen.append((now, count))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW:
            self._seen.popleft()
        since, before = self._seen[0]
        return max(0.0, (count - before) / (now - since)) if now > since else 0.0

    @property
    def seconds(self) -> float:
        return self.now() - self._began

    def look_at(self, alive: Sequence[WorkerInfo]) -> None:
        """Update what depends on the live workers."""
        self.workers = len(alive)
        self.device = ", ".join(sorted({"GPU" if w.device.startswith("cuda") else w.device.upper() for w in alive}))
        now = self.now()
        shares = []
        for worker in alive:
            since, busy = self._busy_seen.get(worker.id, (now, worker.busy))
            if now - since >= 2:
                shares.append(min(1.0, (worker.busy - busy) / (now - since)))
                self._busy_seen[worker.id] = (now, worker.busy)
            elif worker.id not in self._busy_seen:
                self._busy_seen[worker.id] = (now, worker.busy)
        if shares:
            self.busy = sum(shares) / len(shares)
        self._busy_seen = {w.id: self._busy_seen[w.id] for w in alive}

    def to_json(self) -> dict[str, Any]:
        rate, total = self.rate, self.total
        left = None if total is None else total - self.done - self.failed
        return {
            "rows": {"total": total, "exact": self.rows is not None, "done": self.done, "failed": self.failed},
            "shards": {
                "total": self.shards,
                "whole": self.complete,
                "running": sum(1 for u in self.underway if sum(u)),
            },
            "rows_per_s": round(rate, 1),
            "eta_s": round(left / rate) if rate and left is not None else None,
            "busy": None if self.busy is None else round(self.busy, 3),
            "reasons": dict(self.reasons),
            "source_away": self.away,
            "workers": self.workers,
            "device": self.device,
        }
