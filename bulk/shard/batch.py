"""A batch of a shard's rows as one item of the batcher, so that the batcher cannot mix it with other rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from clip_queue.shared.lane import Lane
from clip_queue.shared.vectors import Matrix
from clip_queue.worker.inference.item import Forward, Result


class Batch:
    """An item of the batcher (:class:`clip_queue.worker.inference.item.Item`) that holds ``size`` rows.

    ``forward`` computes ``payload``; ``features`` gets the result (size, dimension). Once ``should_stop`` returns True
    the batch is dropped before it is computed.
    """

    lane = Lane.BULK

    def __init__(
        self, forward: Callable[[Any], Result], payload: Any, size: int, should_stop: Callable[[], bool]
    ) -> None:
        self.forward: Forward = lambda payloads: _One(forward(payloads[0]))
        self.payload = payload
        self.size = size
        self.features: Future[Matrix] = Future()
        self._should_stop = should_stop

    @property
    def dropped(self) -> bool:
        return self._should_stop()

    def started(self) -> None:
        """A shard measures its times itself."""

    def drop(self) -> None:
        self.features.cancel()

    def resolve(self, features: Matrix) -> None:
        self.features.set_result(features)

    def fail(self, error: Exception) -> None:
        self.features.set_exception(error)


class _One:
    """The features of a batch (n, dimension) as the features of one item (1, n, dimension)."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def result(self) -> Matrix:
        return self._result.result()[None]
