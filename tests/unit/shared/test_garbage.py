"""What is in memory when a process is ready is looked at by no later collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from clip_queue.shared import garbage


class Knot:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_was_loaded_is_looked_at_no_more() -> None:
    garbage.freeze()
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < 0.1 * gc.get_freeze_count()


def test_what_comes_after_is_collected_as_ever() -> None:
    garbage.freeze()
    Knot()
    assert gc.collect() >= 1


def test_the_young_are_looked_at_more_rarely() -> None:
    before = gc.get_threshold()
    garbage.freeze_and_look_rarely()
    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold() == (10_000, *before[1:])
