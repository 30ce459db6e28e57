"""The batcher: one thread that runs all forward passes and never waits for a batch to fill.

When the model is free, the batcher takes the items that wait, up to the batch limit: first those of the interactive
lane, then those of the background lane, then those of the bulk lane, whose items are whole batches. A batch has items
of one model and one modality. There is no timer and no least size. A lone item is computed at once; under load, batches
fill while the forward pass before them runs.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from clip_queue.shared.errors import ClipError
from clip_queue.shared.lane import Lane
from clip_queue.shared.vectors import Matrix, Vector
from clip_queue.worker.inference.brief import BriefPasses

log = logging.getLogger(__name__)


class Result(Protocol):
    """Features that are being computed."""

    def result(self) -> Matrix:
        """The features (n, dimension), float32, one row an item; waits for them."""


Forward = Callable[[Sequence[Any]], Result]  # begins the forward pass of a batch, given its payloads


class Item(Protocol):
    """An image, a text, or a batch of them that was made elsewhere.

    The batcher calls exactly one of :meth:`drop`, :meth:`resolve` and :meth:`fail`, once, in its thread.
    """

    @property
    def lane(self) -> Lane: ...
    @property
    def forward(self) -> Forward: ...  # items of one batch have the same
    @property
    def payload(self) -> Any: ...  # what ``forward`` takes: pixels, tokens, or a stacked batch
    @property
    def size(self) -> int: ...  # number of images and texts in it
    @property
    def dropped(self) -> bool: ...  # nobody waits for it any more, so it must not be computed
    def started(self) -> None: ...  # its forward pass begins; called again when a failed batch is halved
    def drop(self) -> None: ...  # it is not computed, because it is ``dropped``
    def resolve(self, features: Vector) -> None: ...  # its row of the result, a view of the whole batch's features
    def fail(self, error: Exception) -> None: ...  # its forward pass failed, or gave no finite numbers


class NotFinite(ClipError):
    """The model made NaN or infinity of an item."""

    def __init__(self) -> None:
        super().__init__(
            "The model's vector of this item is not finite, so it is not used: the model's numbers do not fit into the "
            "worker's precision, or its weights are broken. Set CLIP_QUEUE_PRECISION=fp32 there."
        )


@dataclass(frozen=True)
class InFlightBatch:
    """A batch whose forward pass has been launched; ``result`` is the error if launching failed."""

    items: list[Item]
    result: Result | Exception

    def features(self) -> Matrix:
        """Wait for the features (n, dimension), one row an item. Raises what the forward pass raised."""
        if isinstance(self.result, Exception):
            raise self.result
        features = self.result.result()
        if len(features) != len(self.items):
            raise ValueError(f"the model returned {len(features)} rows for {len(self.items)} items")
        return features


class Batcher:
    """The queues of items, one a lane, and the thread that computes them.

    :attr:`items` and :attr:`batches` count what has been launched, :attr:`busy` is the seconds in forward passes.

    Args:
        limits: most items in a batch, by lane.
        capacity: most items that wait in each lane.
        fatal: called with the error when the device cannot be used any more or the thread ends; it must end the
            process.
        depth: forward passes that are launched ahead of the one that is waited for: 1 on CUDA, which works while the
            host goes on, 0 where launching computes.
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
        self._depth = depth
        self._queues: dict[Lane, deque[Item]] = {lane: deque() for lane in Lane}
        lock = threading.Lock()
        self._change = threading.Condition(lock)
        self._room = threading.Condition(lock)  # apart, so that a new item wakes the batcher and no other caller
        self._stopping = False
        self._busy_since = 0.0
        self._brief = None if depth else BriefPasses(limits[Lane.BACKGROUND])
        self.items = 0
        self.batches = 0
        self.busy = 0.0
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End the thread after the items that wait. False if it has not ended within ``timeout`` seconds."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def put(self, item: Item, timeout: float = 0.0) -> None:
        """Add an item to its lane.

        Raises :class:`queue.Full` if ``capacity`` items wait there, and still do after ``timeout`` seconds.
        """
        self.put_all([item], timeout)

    def put_all(self, items: Sequence[Item], timeout: float = 0.0) -> None:
        """Add items of one lane so that the batcher meets all of them at once. Raises what :meth:`put` raises."""
        lane = items[0].lane
        waiting = self._queues[lane]
        with self._change:
            if not self._room.wait_for(lambda: len(waiting) + len(items) <= self._capacity, timeout):
                raise queue.Full(f"{len(waiting)} items wait in the {lane} lane")
            waiting.extend(items)
            if self._brief and lane is Lane.INTERACTIVE:
                self._brief.asked()
            self._change.notify()

    def busy_for(self) -> float:
        """Seconds that the current forward pass has taken so far; 0 if there is none."""
        since = self._busy_since
        return time.monotonic() - since if since else 0.0

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        in_flight: deque[InFlightBatch] = deque()
        try:
            while True:
                items = self._take(block=not in_flight)
                if items is None and not in_flight:
                    return
                if items:
                    self._busy_since = self._busy_since or time.monotonic()  # what is in flight has begun before
                    in_flight.append(self._launch(items))
                if in_flight and (not items or len(in_flight) > self._depth):
                    self._collect(done := in_flight.popleft())
                    took = self.busy_for()
                    self.busy += took
                    if self._brief and done.items[0].lane is Lane.BACKGROUND:
                        self._brief.took(done.items[0].forward, len(done.items), took)
                    self._busy_since = time.monotonic() if in_flight else 0.0
        except BaseException as error:
            log.critical("the batcher's thread died", exc_info=True)
            self._fatal(error)

    def _take(self, block: bool) -> list[Item] | None:
        """The items of the next batch. [] if none wait and ``block`` is false; None when stopping."""
        with self._change:
            while True:
                for lane, waiting in self._queues.items():
                    before = len(waiting)
                    items = self._gather(waiting, self._limit(lane, waiting[0])) if waiting else []
                    if len(waiting) < before:
                        self._room.notify_all()
                    if items:
                        return items
                if self._stopping:
                    return None
                if not block:
                    return []
                self._change.wait()  # without a timeout, since put() and stop() notify

    def _limit(self, lane: Lane, first: Item) -> int:
        """The most items of a lane's next batch, whose first is that."""
        if self._brief and lane is Lane.BACKGROUND:
            return self._brief.most(first.forward)
        return self._limits[lane]

    @staticmethod
    def _gather(waiting: deque[Item], limit: int) -> list[Item]:
        """The first item of a lane, and those that can be computed with it. The others keep their order."""
        chosen: list[Item] = []
        others: list[Item] = []
        while waiting and len(chosen) < limit and len(others) < 4 * limit:
            item = waiting.popleft()
            if item.dropped:
                item.drop()
                continue
            (chosen if not chosen or item.forward == chosen[0].forward else others).append(item)
        waiting.extendleft(reversed(others))
        return chosen

    def _launch(self, items: list[Item]) -> InFlightBatch:
        """Begin the forward pass of a batch."""
        for item in items:
            item.started()
        self.items += sum(item.size for item in items)
        self.batches += 1
        try:
            return InFlightBatch(items, items[0].forward([item.payload for item in items]))
        except Exception as error:
            return InFlightBatch(items, error)

    def _collect(self, batch: InFlightBatch) -> None:
        """Wait for the features of a batch and pass them to its items."""
        try:
            features = batch.features()
        except Exception as error:
            self._retry_in_halves(batch.items, error)
            return
        finite: Any = np.isfinite(features.reshape(len(features), -1)).all(axis=1).tolist()
        for item, row, good in zip(batch.items, features, finite, strict=True):
            if good:
                item.resolve(row)
            else:
                log.error("the model made NaN or infinity of an item")
                item.fail(NotFinite())

    def _retry_in_halves(self, items: list[Item], error: Exception) -> None:
        """Compute the halves of a batch that has failed; a batch of one item fails for good.

        Either one item is the cause, or the batch is too large for the device's memory. Halving finds the item, or a
        size that fits.
        """
        if _breaks_device(error):
            self._fatal(error)
        # The traceback would keep what the failed pass has computed in the device's memory while its halves want it.
        traceback.clear_frames(error.__traceback__)
        if len(items) == 1:
            log.error("the model failed on an item", exc_info=error)
            items[0].fail(error)
            return
        half = len(items) // 2
        for part in (items[:half], items[half:]):
            self._collect(self._launch(part))


# Signs of too little memory, which leaves the device as it was, in errors of other kinds: of a pinned allocation, and
# of the libraries' workspaces.
_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED")


def _breaks_device(error: Exception) -> bool:
    """Whether the device cannot be used any more: after a CUDA error other than lack of memory, its context is lost."""
    name, said = type(error).__name__, str(error)
    if name == "OutOfMemoryError" or any(sign in said for sign in _MEMORY):
        return False
    return name == "AcceleratorError" or "CUDA error" in said
