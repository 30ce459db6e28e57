"""When a run tries again, how long it waits, and when it gives up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """Times in seconds. The table of all retry policies is in docs/design.md."""

    submissions: int = 3  # times that a shard whose workers were lost is submitted
    source_pause: float = 5.0  # before a shard whose source was away is submitted again
    source_away: float = 300.0  # that the source may be away, and no row come, before the run is given up
    marker_unseen: float = 90.0  # that a finished shard's files may take to be seen from this machine
    other_worker: float = 1.0  # before a shard that a worker of an earlier release refused is submitted again
    no_worker: float = 600.0  # without a live worker before the run is given up
    find_workers: float = 60.0  # to find the first live worker
