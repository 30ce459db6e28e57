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

    ``unfinished``: jobs by model. ``totals``: how often something has happened, by event, lane and model: jobs that
    ended, by state; jobs ``requeued`` for a lost worker; ``resent``, whose message may have been lost (those of other
    lanes than the interactive one are sent again while they wait, as a matter of course); ``worker_lost``, of no model.
    """

    held: int
    limit: int | None
    lanes: list[LaneCensus]
    unfinished: dict[str, int]
    totals: dict[tuple[str, str, str], int] = field(default_factory=dict)


def census(models: Iterable[str]) -> Op[Census]:
    """The state of the lanes of ``models``, in one round trip."""
    return Op([call("census", *models)], _parse)


def _parse(replies: list[Any]) -> Census:
    held, limit, totals, *models = replies[0]
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
    )


def memory() -> Op[tuple[int, int]]:
    """The memory that Redis uses, and its ``maxmemory`` (0: none), bytes. Its user may be forbidden to ask."""

    def parse(replies: list[Any]) -> tuple[int, int]:
        return int(replies[0].get("used_memory", 0)), int(replies[0].get("maxmemory", 0))

    return Op([("INFO", "memory")], parse)


def _event(key: str) -> tuple[str, str, str]:
    event, lane, model = key.split(":", 2)  # a model's name may hold more colons
    return event, lane, model
