"""The order of a comparison's items: its subject first, then its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from clip_queue.shared.vectors import Matrix, Vector

S = TypeVar("S")
T = TypeVar("T")


def join(subject: S, prompts: Sequence[T]) -> list[S | T]:
    """The items of a comparison."""
    return [subject, *prompts]


def split(features: Matrix) -> tuple[Vector, Matrix]:
    """The features of the subject and of the prompts, from those of a comparison's items (1 + prompts, dimension)."""
    return features[0], features[1:]


def caller_index(place: int) -> int | None:
    """An item's index for the caller: the subject has none, the first prompt has 0."""
    return place - 1 if place else None
