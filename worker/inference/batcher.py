"""The batcher: one thread that owns the models and never waits for a batch to fill.

When the model is free it takes what is there: the interactive lane first, then the background lane, up to the
batch limit, one model and one modality a batch; then the bulk lane, whose items are whole batches. There is no timer
and no minimum: a lone request leaves at once, and under load batches fill by themselves while the forward pass before
them runs.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clip_queue.shared.lane import Lane

log = logging.getLogger(__name__)


class Result(Protocol):
    """Features being computed; :meth:`result` waits for them."""

    def result(self) -> NDArray[np.float32]: ...


Forward = Callable[[Sequence[Any]], Result]


class Item(Protocol):
    """One picture or text, or a batch of them made elsewhere. The batcher calls exactly one of the last three."""

    @property
    def lane(self) -> Lane: ...
    @property
    def forward(self) -> Forward: ...  # what computes it; items of one batch share it
    @property
    def payload(self) -> Any: ...
    @property
    def size(self) -> int: ...  # pictures and texts in it
    @property
    def dropped(self) -> bool: ...  # nobody waits for it any more: costs no compute
    def started(self) -> None: ...
    def drop(self) -> None: ...
    def resolve(self, features: NDArray[np.float32]) -> None: ...
    def fail(self, error: Exception) -> None: ...


@dataclass
class InFlightBatch:
    items: list[Item]
    result: Result | Exception


class Batcher:
    """``capacity`` items may wait in each lane; who puts more gets :class:`queue.Full`.

    ``fatal`` is called, once, when an error has spoilt the device or the thread itself; it must end the process.
    """

    def __init__(
        self,
        limits: dict[Lane, int],
        *,
        capacity: int,
        fatal: Callable[[BaseException], None],
        depth: int = 0,
    ) -> None:
        self._limits = limits
        self._capacity = capacity
        self._fatal = fatal
        self._depth = depth  # passes launched ahead of the one waited for: 1 on CUDA, 0 where launching computes
        self._queues: dict[Lane, deque[Item]] = {lane: deque() for lane in Lane}
        self._change = threading.Condition()
        self._stopping = False
        self._busy_since = 0.0
        self.items = 0
        self.batches = 0
        self.busy = 0.0  # seconds in forward passes
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End after the pass under way; False if it did not end in time."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def put(self, item: Item) -> None:
        """Hand over an item. Raises :class:`queue.Full` beyond the lane's capacity."""
        waiting = self._queues[item.lane]
        with self._change:
            if len(waiting) >= self._capacity:
                raise queue.Full(f"{len(waiting)} items wait in the {item.lane} lane")
            waiting.append(item)
            self._change.notify()

    def busy_for(self) -> float:
        """Seconds that the pass under way has taken; 0 when idle. The watchdog reads it."""
        since = self._busy_since
        return time.monotonic() - since if since else 0.0

    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        in_flight: deque[InFlightBatch] = deque()
        try:
            while True:
                batch = self._take(block=not in_flight)
                if batch is None and not in_flight:
                    return
                if batch:
                    self._busy_since = time.monotonic()
                    in_flight.append(self._launch(batch))
                if in_flight and (not batch or len(in_flight) > self._depth):
                    self._collect(in_flight.popleft())
                    self.busy += self.busy_for()
                    self._busy_since = time.monotonic() if in_flight else 0.0
        except BaseException as error:
            log.critical("the batcher's thread died", exc_info=True)
            self._fatal(error)

    def _take(self, block: bool) -> list[Item] | None:
        """The next batch: [] if there is none and ``block`` is false, None when stopping."""
        with self._change:
            while True:
                for lane, waiting in self._queues.items():
                    if batch := self._gather(waiting, self._limits[lane]):
                        return batch
                if self._stopping:
                    return None
                if not block:
                    return []
                self._change.wait()  # no timeout: put() and stop() both notify

    @staticmethod
    def _gather(waiting: deque[Item], limit: int) -> list[Item]:
        """The head of the queue and what can be computed with it; the others keep their order."""
        batch: list[Item] = []
        others: list[Item] = []
        while waiting and len(batch) < limit and len(others) < 4 * limit:
            item = waiting.popleft()
            if item.dropped:
                item.drop()
                continue
            (batch if not batch or item.forward == batch[0].forward else others).append(item)
        waiting.extendleft(reversed(others))
        return batch

    def _launch(self, items: list[Item]) -> InFlightBatch:
        for item in items:
            item.started()
        self.items += sum(item.size for item in items)
        self.batches += 1
        try:
            return InFlightBatch(items, items[0].forward([item.payload for item in items]))
        except Exception as error:
            return InFlightBatch(items, error)

    def _collect(self, launched: InFlightBatch) -> None:
        error: Exception
        if not isinstance(launched.result, Exception):
            try:
                features = launched.result.result()
                for item, row in zip(launched.items, features, strict=True):
                    item.resolve(row)
                return
            except Exception as late:
                error = late
        else:
            error = launched.result
        if _spoils_device(error):
            self._fatal(error)
        if len(launched.items) == 1:
            log.error("the model failed on an item", exc_info=error)
            launched.items[0].fail(error)
            return
        # Someone in here is to blame (or the batch is too large for the memory): halve until it stands alone.
        half = len(launched.items) // 2
        for part in (launched.items[:half], launched.items[half:]):
            self._collect(self._launch(part))


def _spoils_device(error: Exception) -> bool:
    """After a CUDA error other than lack of memory the process's context is lost."""
    name = type(error).__name__
    return name == "AcceleratorError" or ("CUDA error" in str(error) and name != "OutOfMemoryError")
