"""How many bytes may be fetched for one request, and for all requests of a process at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from clip_queue.shared.errors import BadImage, Unavailable
from clip_queue.shared.settings import Settings


class FetchBudget:
    """One a process. What is fetched inside :meth:`request`, or in tasks that begin there, counts for one request."""

    def __init__(self, settings: Settings) -> None:
        self._request_limit = settings.fetch_max_request_bytes
        self._total_limit = settings.fetch_max_total_bytes
        self._total = 0
        self._spent: ContextVar[list[int] | None] = ContextVar("spent", default=None)

    @contextmanager
    def request(self) -> Iterator[None]:
        """What a request fetches counts for the process until the context ends."""
        spent = [0]
        token = self._spent.set(spent)
        try:
            yield
        finally:
            self._spent.reset(token)
            self._total -= spent[0]

    def spend(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            BadImage: the request has fetched too much.
            Unavailable: all requests have.
        """
        spent = self._spent.get()
        if spent is None:
            return
        if spent[0] + size > self._request_limit:
            limit = f"{self._request_limit} bytes (setting fetch_max_request_bytes)"
            raise BadImage.because(f"The images of the request's URLs are together larger than {limit}.")
        if self._total + size > self._total_limit:
            limit = f"{self._total_limit} bytes (setting fetch_max_total_bytes)"
            raise Unavailable(f"The requests under way fetch more than {limit}; try again.", retry_after=2)
        spent[0] += size
        self._total += size
