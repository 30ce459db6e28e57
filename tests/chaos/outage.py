"""How long the service answered nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

NOTABLE = 1.0  # seconds from which an outage is noted


class OutageClock:
    """Runs while good requests are sent and none succeeds.

    ``amid`` says what befalls the service, for the note. Times are seconds since the clock was made.
    """

    def __init__(self, amid: Callable[[], str]) -> None:
        self._amid = amid
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._since: float | None = None  # when the first request was sent after which none has succeeded
        self._under_way = 0
        self.outages: list[tuple[float, float, str]] = []

    def sent(self) -> None:
        with self._lock:
            self._under_way += 1
            if self._since is None:
                self._since = time.monotonic()

    def ended(self, *, well: bool) -> None:
        """A request has ended."""
        with self._lock:
            self._under_way -= 1
            if well:
                self._note()
                self._since = time.monotonic() if self._under_way else None

    def stop(self) -> None:
        """Note an outage that lasts to the end."""
        with self._lock:
            self._note()
            self._since = None

    def _note(self) -> None:
        if self._since is not None and (seconds := time.monotonic() - self._since) >= NOTABLE:
            self.outages.append((round(seconds, 2), round(self._since - self._began, 1), self._amid()))
