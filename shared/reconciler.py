"""Reconciling the store with the queue: jobs that no live worker holds and no message refers to are sent again.

Every process may do it, and a lock in Redis lets one do it at a time. A process that could not reach Redis waits for
the time of a lease first: after a restart of Redis, all workers look dead until their next heartbeat.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable

from clip_queue.shared import ops
from clip_queue.shared.lane import Lane
from clip_queue.shared.messages import MESSAGE
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Op, call

PERIOD = 1.0  # seconds between two passes
RUNS = ":runs"  # the turn for runs that workers lead: a process of release 0.1 does not look after them
RESEND_AFTER = 3.0  # seconds without a message in the queue after which a waiting job is sent again


class GracePeriod:
    """Whether Redis has been reachable for so long that a missing lease means a dead worker."""

    def __init__(self, settings: Settings) -> None:
        self._lease = settings.lease
        self._since = time.monotonic()

    def restart(self) -> None:
        self._since = time.monotonic()

    @property
    def over(self) -> bool:
        return time.monotonic() - self._since > self._lease


def acquire_turn(who: str, what: str = "") -> Op[bool]:
    """Whether this process does the pass now. ``what``: :data:`RUNS`, or nothing."""
    return Op([call("acquire_turn", who, int(PERIOD * 950), what)], lambda replies: replies[0] == 1)


def resend_level(lane: Lane) -> int:
    """The level of its log message. Only an interactive job that is sent again has lost its message."""
    return logging.WARNING if lane is Lane.INTERACTIVE else logging.INFO


Resend = tuple[str, Lane, list[str]]


class ReconcilePass:
    """One pass over the unfinished jobs of ``models``. Execute :attr:`op` and :meth:`advance`, until ``op`` is None."""

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

    def advance(self, page: ops.Page) -> None:
        model = self._models[0]
        for lane, ids in page.resend.items():
            if lane is not Lane.INTERACTIVE:
                # A worker that gets a message of these lanes looks for more jobs in the store: one message is enough.
                ids = ids[:MESSAGE]
            self.resend += [(model, lane, part) for part in batched(ids, MESSAGE)]
        self._offset = page.offset
        if page.offset < 0:
            self._models.popleft()
            self._offset = 0


def batched(ids: list[str], size: int) -> Iterable[list[str]]:
    return (ids[i : i + size] for i in range(0, len(ids), size))
