"""Items of the batcher: what one is, and an image or a text as one, with the recipient of its features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from clip_queue.shared.errors import ClipError
from clip_queue.shared.lane import Lane
from clip_queue.shared.vectors import Matrix, Vector


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


class Recipient(Protocol):
    """The recipient of an item's features. The engine calls one of the three methods, once, from any thread."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the item any more; then it is not computed."""

    def drop(self) -> None:
        """The item was not computed, because the recipient was :attr:`gone`."""

    def resolve(self, features: Vector, timings: dict[str, float]) -> None:
        """Take the item's raw features (dimension,), and the seconds in each stage: prepare, wait and forward."""

    def fail(self, error: ClipError) -> None:
        """Take the error that the item has caused."""


class BatchItem:
    """An image or a text that is ready for its forward pass (:class:`Item`).

    Args:
        payload: the pixels or the tokens.
        began: when the preparation of the item began, seconds on the monotonic clock.
        leave: called once, when the item leaves the engine, with its features, or None if it has none.
    """

    __slots__ = ("_began", "_leave", "_ready", "_recipient", "_started", "forward", "lane", "payload")
    size = 1

    def __init__(
        self,
        recipient: Recipient,
        lane: Lane,
        forward: Forward,
        payload: Any,
        began: float,
        leave: Callable[[Vector | None], None],
    ) -> None:
        self.forward = forward
        self.payload = payload
        self.lane = lane
        self._recipient = recipient
        self._leave = leave
        self._began = began
        self._ready = time.monotonic()
        self._started = 0.0

    @property
    def dropped(self) -> bool:
        return self._recipient.gone

    def drop(self) -> None:
        self._recipient.drop()
        self._leave(None)

    def started(self) -> None:
        self._started = time.monotonic()

    def resolve(self, features: Vector) -> None:
        now = time.monotonic()
        timings = {
            "prepare": self._ready - self._began,  # decoding, or tokenising
            "wait": self._started - self._ready,  # until the model was free
            "forward": now - self._started,
        }
        own = np.array(features)  # a copy, because a view would keep the features of the whole batch in memory
        self._leave(own)
        self._recipient.resolve(own, timings)

    def fail(self, error: Exception) -> None:
        self._leave(None)
        if not isinstance(error, ClipError):
            error = ClipError(f"The model failed on this item ({type(error).__name__}).")
        self._recipient.fail(error)
