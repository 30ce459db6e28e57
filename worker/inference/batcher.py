"""The batcher: the threads that run all forward passes and never wait for a batch to fill.

A thread that is free takes the items that wait, up to the batch limit: first those of the interactive lane, then those
of the background lane, then those of the bulk lane, whose items are whole batches. A batch has items of one model and
one modality. There is no timer and no least size. A lone item is computed at once; under load, batches fill while the
forward pass before them runs.

On CUDA one thread does it all. On a CPU the interactive lane has a thread of its own, so that whoever waits for an
answer waits for no pass of another lane: the kernel takes the cores from the thread that computes those.
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
from typing import Any

import numpy as np

from clip_queue.shared.lane import Lane
from clip_queue.shared.vectors import Matrix
from clip_queue.worker.inference.item import Item, Result
from clip_queue.worker.inference.pass_errors import NotFinite, breaks_device
from clip_queue.worker.inference.priority import Share, give_way

log = logging.getLogger(__name__)


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
    """The queues of items, one a lane, and the threads that compute them.

    :attr:`items` and :attr:`batches` count what has been launched, :attr:`busy` is the seconds in which a pass or
    several were in flight.

    Args:
        limits: most items in a batch, by lane.
        capacity: most items that wait in each lane.
        fatal: called with the error when the device cannot be used any more or a thread ends; it must end the
            process.
        depth: forward passes that a thread launches ahead of the one that it waits for: 1 on CUDA, which works while
            the host goes on, 0 where launching computes.
        shares: a thread for each; together they have each lane once.
    """

    def __init__(
        self,
        limits: dict[Lane, int],
        *,
        capacity: int,
        fatal: Callable[[BaseException], None],
        depth: int = 0,
        shares: Sequence[Share] = (Share(),),
    ) -> None:
        self._limits = limits
        self._capacity = capacity
        self._fatal = fatal
        self._depth = depth
        self._queues: dict[Lane, deque[Item]] = {lane: deque() for lane in Lane}
        self._lock = threading.Lock()
        changes = {share: threading.Condition(self._lock) for share in shares}
        self._changes = {lane: changes[share] for share in shares for lane in share.lanes}
        self._room = threading.Condition(self._lock)  # apart, so that a new item wakes a thread of ours and no caller
        self._stopping = False
        self._busy_since = 0.0
        self._began: dict[Share, float] = {}  # of the pass in flight that is waited for next
        self._took = dict.fromkeys(shares, 0.0)  # seconds of all passes that have ended
        self._others: dict[Share, float] = {}  # what those of other shares had taken when it began
        self.items = 0
        self.batches = 0
        self.busy = 0.0
        self._threads = [
            threading.Thread(target=self._run, args=(share,), name=f"batcher-{share.lanes[0]}", daemon=True)
            for share in shares
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> bool:
        """End the threads after the items that wait. False if they have not ended within ``timeout`` seconds."""
        until = time.monotonic() + timeout
        with self._lock:
            self._stopping = True
            for change in self._changes.values():
                change.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def put(self, item: Item, timeout: float = 0.0) -> None:
        """Add an item to its lane.

        Raises :class:`queue.Full` if ``capacity`` items wait there, and still do after ``timeout`` seconds.
        """
        self.put_all([item], timeout)

    def put_all(self, items: Sequence[Item], timeout: float = 0.0) -> None:
        """Add items of one lane so that a thread meets all of them at once. Raises what :meth:`put` raises."""
        lane = items[0].lane
        waiting = self._queues[lane]
        with self._lock:
            if not self._room.wait_for(lambda: len(waiting) + len(items) <= self._capacity, timeout):
                raise queue.Full(f"{len(waiting)} items wait in the {lane} lane")
            waiting.extend(items)
            self._changes[lane].notify()

    def busy_for(self) -> float:
        """Seconds that the longest of the current forward passes has taken so far; 0 if there is none."""
        with self._lock:
            return time.monotonic() - min(self._began.values()) if self._began else 0.0

    def overdue(self, limit: float) -> float:
        """Seconds that a forward pass has taken if they are more than a limit, else 0.

        For one that gives way those count in which no pass of others ran: beside them it may get hardly any time.
        """
        with self._lock:
            now = time.monotonic()
            seconds = (
                now - began - (self._time_of_others(share, now) - self._others[share] if share.nice else 0)
                for share, began in self._began.items()
            )
            return max((took for took in seconds if took > limit), default=0.0)

    def busy_seconds(self) -> float:
        """:attr:`busy`, with the passes that are in flight."""
        with self._lock:
            return self.busy + (time.monotonic() - self._busy_since if self._busy_since else 0.0)

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop; its threads end then."""
        return self._stopping

    def alive(self) -> bool:
        """Whether all threads run that should: on stopping, each ends when it has no more to do."""
        running = [thread.is_alive() for thread in self._threads]
        return any(running) if self._stopping else all(running)

    def _run(self, share: Share) -> None:
        give_way(share.nice)
        in_flight: deque[InFlightBatch] = deque()
        try:
            while True:
                items = self._take(share, block=not in_flight)
                if items is None and not in_flight:
                    return
                if items:
                    self._begin(share)
                    in_flight.append(self._launch(items))
                if in_flight and (not items or len(in_flight) > self._depth):
                    self._collect(in_flight.popleft())
                    self._end(share, bool(in_flight))
        except BaseException as error:
            log.critical("the batcher's thread died", exc_info=True)
            self._fatal(error)

    def _begin(self, share: Share) -> None:
        with self._lock:
            now = time.monotonic()
            self._busy_since = self._busy_since or now
            if share not in self._began:  # what is in flight has begun before
                self._note(share, now)

    def _end(self, share: Share, more: bool) -> None:
        """A pass has ended; ``more``: the share has another in flight."""
        with self._lock:
            now = time.monotonic()
            self._took[share] += now - self._began.pop(share)
            if more:
                self._note(share, now)
            self.busy += now - self._busy_since
            self._busy_since = now if self._began else 0.0

    def _note(self, share: Share, now: float) -> None:
        self._began[share], self._others[share] = now, self._time_of_others(share, now)

    def _time_of_others(self, share: Share, now: float) -> float:
        """Seconds of all passes of other shares so far."""
        ended = sum(took for other, took in self._took.items() if other != share)
        return ended + sum(now - began for other, began in self._began.items() if other != share)

    def _take(self, share: Share, block: bool) -> list[Item] | None:
        """The items of the next batch. [] if none wait and ``block`` is false; None when stopping."""
        with self._lock:
            while True:
                for lane in share.lanes:
                    waiting = self._queues[lane]
                    before = len(waiting)
                    items = self._gather(waiting, self._limits[lane])
                    if len(waiting) < before:
                        self._room.notify_all()
                    if items:
                        return items
                if self._stopping:
                    return None
                if not block:
                    return []
                self._changes[share.lanes[0]].wait()  # without a timeout, since put() and stop() notify

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
        with self._lock:
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
        if breaks_device(error):
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
