"""Brief background passes: how many items one has on a CPU while requests come, which may have to wait for it.

Large models take hardly longer for an image alone than for one of eight, where there are few cores; so a smaller batch
is nearly free, and a request waits for less. Where it costs more, the batch stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

BRIEF = 0.05  # seconds of a pass up to which it need not be smaller
DEAR = 1.25  # times what an item of a whole pass costs, above which a smaller pass is not worth it
RECENT = 60.0  # seconds after a request in which another is expected
REMEMBERED = 600.0  # seconds after which costs are measured anew: the machine may have other work by then


class BriefPasses:
    """The most items of background passes. For one thread, but for :meth:`asked`.

    Args:
        most: items of a pass where nobody waits.
        now: a clock, seconds.
    """

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._now = most, now
        self._asked = float("-inf")
        self._costs: dict[tuple[Hashable, int], float] = {}  # by what is computed and items: least seconds an item
        self._since = now()

    def asked(self) -> None:
        """A request has come."""
        self._asked = self._now()

    def took(self, kind: Hashable, items: int, seconds: float) -> None:
        """A pass of a kind has taken so long."""
        cost, known = seconds / items, self._costs.get((kind, items), float("inf"))
        self._costs[kind, items] = min(cost, known)  # what else the machine does only makes it longer

    def most(self, kind: Hashable) -> int:
        """The most items of the next pass of a kind: halved while it is long, unless that makes each item dear."""
        now = self._now()
        if now - self._asked > RECENT:
            return self._most
        if now - self._since > REMEMBERED:
            self._costs.clear()
            self._since = now
        size, dear = self._most, DEAR * self._cost(kind, self._most)
        while size > 1 and size * self._cost(kind, size) > BRIEF and self._cost(kind, size // 2) <= dear:
            size //= 2
        return size

    def _cost(self, kind: Hashable, items: int) -> float:
        """Seconds an item; 0 if no such pass is known, so that it is tried."""
        return self._costs.get((kind, items), 0.0)
