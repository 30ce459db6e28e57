"""Batchers, their items, and a model that the test controls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from clip_queue.shared.lane import Lane
from clip_queue.worker.inference.batcher import Batcher
from clip_queue.worker.inference.item import Forward

Make = Callable[..., Batcher]

WAIT = 10.0  # seconds; only a bug lets them pass


class Ready:
    """A result for which nobody has to wait."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def result(self) -> np.ndarray:
        return self._rows


class Model:
    """Doubles its payloads. With ``gated``, each pass waits until the test releases the gate."""

    def __init__(self, *, gated: bool = False) -> None:
        self.passes: list[list[Any]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.gated = gated
        self.poison: Callable[[list[Any]], Exception | None] = lambda payloads: None

    def __call__(self, payloads: Sequence[Any]) -> Ready:
        self.passes.append(list(payloads))
        self.entered.release()
        if self.gated:
            assert self.gate.acquire(timeout=WAIT)
        if error := self.poison(list(payloads)):
            raise error
        return Ready(np.array([[2 * p] for p in payloads], dtype=np.float32))


class Entry:
    """An item that keeps the calls of the batcher."""

    def __init__(self, payload: Any, forward: Forward, lane: Lane = Lane.INTERACTIVE) -> None:
        self.payload, self.forward, self.lane, self.size = payload, forward, lane, 1
        self.dropped = False
        self.starts = 0
        self.told: list[Any] = []
        self.over = threading.Event()

    def started(self) -> None:
        self.starts += 1

    def drop(self) -> None:
        self._tell("dropped")

    def resolve(self, features: np.ndarray) -> None:
        self._tell(float(features[0]))

    def fail(self, error: Exception) -> None:
        self._tell(error)

    def _tell(self, what: Any) -> None:
        self.told.append(what)
        self.over.set()

    def wait(self) -> Any:
        """What the item was told, exactly once."""
        assert self.over.wait(WAIT)
        assert len(self.told) == 1
        return self.told[0]


@pytest.fixture
def batcher() -> Iterator[Make]:
    made: list[Batcher] = []

    def make(limit: int = 4, background: int = 2, *, capacity: int = 100, fatal: Any = None, **more: Any) -> Batcher:
        limits = {Lane.INTERACTIVE: limit, Lane.BACKGROUND: background, Lane.BULK: 1}
        made.append(Batcher(limits, capacity=capacity, fatal=fatal or _unexpected, **more))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        assert one.stop(WAIT)


class Fatal(Entry):
    """An item that ends the thread that computed it."""

    def resolve(self, features: np.ndarray) -> None:
        raise SystemExit("out of the thread")


def _unexpected(error: BaseException) -> None:
    raise AssertionError("the batcher gave up") from error


def put(to: Batcher, entries: list[Entry]) -> list[Entry]:
    for entry in entries:
        to.put(entry)
    return entries


def busy(to: Batcher, model: Model) -> Entry:
    """An item that occupies the model, so that later items have to wait."""
    first = Entry(-1, model)
    to.put(first)
    assert model.entered.acquire(timeout=WAIT)
    return first
