"""What the queue lost, the store still knows: jobs that no live lease holds and no message carries are sent again.

Any process may run the round; a lock in Redis lets one do it at a time. A process that has just lost sight of
Redis waits for a whole lease first: after a restart of Redis every lease looks dead until its worker is back.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable

from clip_queue.shared import ops
from clip_queue.shared.broker import MESSAGE
from clip_queue.shared.job import Lane
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Op

PERIOD = 1.0  # seconds between rounds
RESEND_AFTER = 3.0  # seconds that a job waits for its message to be delivered when the queue is empty


class Patience:
    """Whether Redis has been in sight for long enough that a missing lease means a dead worker."""

    def __init__(self, settings: Settings) -> None:
        self._lease = settings.lease
        self._since = time.monotonic()

    def lost_sight(self) -> None:
        self._since = time.monotonic()

    @property
    def over(self) -> bool:
        return time.monotonic() - self._since > self._lease


def take_turn(who: str) -> Op[bool]:
    """Whether this process does the round now."""
    return Op([("SET", "cq:reconciler", who, "NX", "PX", int(PERIOD * 950))], lambda replies: replies[0] is not None)


def resend_level(lane: Lane) -> int:
    """How to log it. Background work that waits is rung for every few seconds; an interactive one lost its message."""
    return logging.WARNING if lane is Lane.INTERACTIVE else logging.INFO


Resend = tuple[str, Lane, list[str]]


class Round:
    """One look through the unfinished jobs of ``models``, page by page: run :attr:`op`, :meth:`turn`, until done."""

    def __init__(self, models: Iterable[str], settings: Settings) -> None:
        self._models = deque(models)
        self._settings = settings
        self._offset = 0
        self.resend: list[Resend] = []  # what to send again: (model, lane, at most 64 ids)

    @property
    def op(self) -> Op[ops.Page] | None:
        if not self._models:
            return None
        neglected = 2 * self._settings.lease
        return ops.reconcile(self._models[0], self._offset, self._settings.max_attempts, RESEND_AFTER, neglected)

    def turn(self, page: ops.Page) -> None:
        model = self._models[0]
        for lane, ids in page.resend.items():
            if lane is not Lane.INTERACTIVE:
                # Messages of these lanes are doorbells, the line itself is in the store: one rings for all of a page.
                ids = ids[:MESSAGE]
            self.resend += [(model, lane, part) for part in batched(ids, MESSAGE)]
        self._offset = page.offset
        if page.offset < 0:
            self._models.popleft()
            self._offset = 0


def batched(ids: list[str], size: int) -> Iterable[list[str]]:
    return (ids[i : i + size] for i in range(0, len(ids), size))
