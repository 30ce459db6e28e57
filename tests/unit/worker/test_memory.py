"""Freed memory goes back to the system."""

from __future__ import annotations

import sys

import pytest

from clip_queue.worker.memory import GROWN, INTERVAL, FreedMemory, malloc_trim, resident


class Process:
    """What a process has, and how often it gave memory back."""

    def __init__(self) -> None:
        self.size, self.time, self.trimmed = 1 << 30, 0.0, 0

    def trim(self) -> None:
        self.trimmed += 1
        self.size -= GROWN // 2

    def freed(self) -> FreedMemory:
        return FreedMemory(size=lambda: self.size, trim=self.trim, now=lambda: self.time)


def test_a_process_that_has_grown_gives_back_what_is_free_now_and_then() -> None:
    process = Process()
    freed = process.freed()
    process.size += 2 * GROWN
    freed.give_back()
    assert process.trimmed == 0, "not at once"
    for _ in range(3):
        process.time += INTERVAL
        freed.give_back()
    assert process.trimmed == 1, "it has not grown since"
    process.size += 2 * GROWN
    freed.give_back()
    assert process.trimmed == 1
    process.time += INTERVAL
    freed.give_back()
    assert process.trimmed == 2


def test_a_process_that_has_not_grown_is_left_alone() -> None:
    process = Process()
    freed = process.freed()
    for _ in range(9):
        process.time += INTERVAL
        process.size += GROWN // 10
        freed.give_back()
    assert process.trimmed == 0


def test_what_was_in_use_at_a_look_is_given_back_later() -> None:
    """A look at the peak of a load frees nothing, and after the load there is nothing new to see."""
    process = Process()
    process.trim = lambda: setattr(process, "trimmed", process.trimmed + 1)  # type: ignore[method-assign]
    freed = process.freed()
    process.size += 4 * GROWN
    for _ in range(6):
        process.time += INTERVAL
        freed.give_back()
    assert process.trimmed == 1, "not at each look"
    del process.trim
    for _ in range(12):
        process.time += INTERVAL
        freed.give_back()
    assert process.trimmed == 3, "once a minute, as long as it has more than it once had"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_what_lies_below_a_small_object_goes_back() -> None:
    blocks = [bytearray(100_000) for _ in range(2000)]
    kept = blocks[::50]
    full = resident()
    del blocks
    trim = malloc_trim()
    if trim is None:
        pytest.skip("no glibc")
    trim()
    assert resident() < full - 100 * 2**20
    assert len(kept) == 40
