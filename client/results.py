"""What the client returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_queue.client.errors import NOT_OURS, ClipQueueError

Matrix = NDArray[np.float32]  # (n, dimension)


@dataclass(frozen=True)
class ItemError:
    """Why one item has no vector. ``code`` is the server's name for it (docs/limits.md)."""

    index: int
    code: str
    message: str


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The vectors of images or texts, in order, as the model computes them: not normalised.

    Attributes:
        vectors: (n, dimension), float32; NaN in the row of an item that failed. (0, 0) if nothing was given.
        errors: with ``on_error="skip"``, the items that failed, by index.
        model: the name of the model.
        fingerprints: of weights, preprocessing and precision. More than one: the workers that answered differ.
    """

    vectors: Matrix = field(repr=False)
    errors: list[ItemError] = field(default_factory=list)
    model: str = ""
    fingerprints: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.vectors)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.vectors, dtype=dtype) if copy else np.asarray(self.vectors, dtype=dtype)

    @property
    def good(self) -> NDArray[np.intp]:
        """The indices of the items that have a vector."""
        return np.setdiff1d(np.arange(len(self)), [error.index for error in self.errors])


def matrix(rows: Sequence[Sequence[float] | None]) -> Matrix:
    """Rows as JSON has them, as an array (n, dimension); NaN where there is none. Raises :class:`ClipQueueError`."""
    try:
        dimension = next((len(row) for row in rows if row is not None), 0)
        empty = [float("nan")] * dimension
        return np.array([empty if row is None else row for row in rows], np.float32).reshape(len(rows), dimension)
    except (TypeError, ValueError):
        raise ClipQueueError("The answer's vectors are not lists of numbers, all of one length.") from None


def cosines(values: Sequence[float]) -> NDArray[np.float32]:
    """Cosines as JSON has them, as an array (n,). Raises :class:`ClipQueueError`."""
    try:
        return np.array(values, np.float32).reshape(len(values))
    except (TypeError, ValueError):
        raise ClipQueueError("The answer's cosines are not numbers.") from None


def item_errors(found: object, count: int) -> list[ItemError]:
    """The errors of some of ``count`` items, in an answer or a job's result. Raises :class:`ClipQueueError`."""
    if found is None:
        return []
    if not isinstance(found, list) or not all(_blames_one(error, count) for error in found):
        raise ClipQueueError(NOT_OURS)
    return [ItemError(error["index"], text(error.get("code")), text(error.get("message"))) for error in found]


def _blames_one(error: object, count: int) -> bool:
    index = error.get("index") if isinstance(error, dict) else None
    return type(index) is int and 0 <= index < count  # True would be an int too


def text(said: object) -> str:
    """A field that should be a text; nothing if it is something else, such as null."""
    return said if isinstance(said, str) else ""
