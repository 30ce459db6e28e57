"""What the store holds now, and what it has counted: for those who watch the service."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class Census:
    """``held``: bytes of jobs and results; ``limit``: most of them, None where nothing is known of it yet.

    ``unfinished``: jobs by model. ``totals``: how often something has happened, by event and model: jobs that ended, by
    state; ``requeued`` for a lost worker; ``resent`` messages of interactive jobs; ``worker_lost``, of no model.
    ``memory`` and ``max_memory``: of the Redis server, bytes; 0: no limit.
    """

    held: int
    limit: int | None
    lanes: list[LaneCensus]
    unfinished: dict[str, int]
    totals: dict[tuple[str, str], int] = field(default_factory=dict)
    memory: int = 0
    max_memory: int = 0


def census(models: Iterable[str]) -> Op[Census]:
    """The state of the lanes of ``models``, in one round trip."""
    return Op([call("census", *models), ("INFO", "memory")], _parse)


def _parse(replies: list[Any]) -> Census:
    (held, limit, totals, *models), memory = replies
    lanes = [
        LaneCensus(name.decode(), lane.decode(), int(items), waiting, max(0, int(oldest)) / 1000)
        for name, _, *of_model in models
        for lane, items, waiting, oldest in of_model
    ]
    return Census(
        held=int(held),
        limit=int(limit) if limit else None,
        lanes=lanes,
        unfinished={name.decode(): unfinished for name, unfinished, *_ in models},
        totals={_event(key.decode()): int(n) for key, n in zip(totals[::2], totals[1::2], strict=True)},
        memory=int(memory.get("used_memory", 0)),
        max_memory=int(memory.get("maxmemory", 0)),
    )


def _event(key: str) -> tuple[str, str]:
    event, _, model = key.partition(":")
    return event, model
