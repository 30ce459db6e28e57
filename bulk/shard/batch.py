"""A batch that a shard has made, as one item of the batcher, which then cannot mix it with anything."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_queue.shared.job import Lane
from clip_queue.worker.inference.batcher import Forward, Result

Matrix = NDArray[np.float32]


class Batch:
    """:class:`clip_queue.worker.inference.batcher.Item` of ``size`` rows; ``features`` will hold theirs (size, dimension).

    ``forward`` computes ``payload``; once ``wanted`` says no it costs nothing any more.
    """

    lane = Lane.BULK

    def __init__(self, forward: Callable[[Any], Result], payload: Any, size: int, wanted: Callable[[], bool]) -> None:
        self.forward: Forward = lambda payloads: _One(forward(payloads[0]))
        self.payload = payload
        self.size = size
        self.features: Future[Matrix] = Future()
        self._wanted = wanted

    @property
    def dropped(self) -> bool:
        return not self._wanted()

    def started(self) -> None:
        """Nothing to note: a shard's times are its own."""

    def drop(self) -> None:
        self.features.cancel()

    def resolve(self, features: Matrix) -> None:
        self.features.set_result(features)

    def fail(self, error: Exception) -> None:
        self.features.set_exception(error)


class _One:
    """A batch's features (n, dimension) as those of one item (1, n, dimension)."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def result(self) -> Matrix:
        return self._result.result()[None]
