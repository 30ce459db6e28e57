"""Background passes while requests come: halved while they are long, and only where that is cheap."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clip_queue.worker.inference.brief import RECENT, REMEMBERED, BriefPasses


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settled(passes: BriefPasses, seconds: Callable[[int], float], kind: str = "images") -> list[int]:
    """The sizes of six passes, of which one of n items takes ``seconds(n)``."""
    sizes = []
    for _ in range(6):
        sizes.append(size := passes.most(kind))
        passes.took(kind, size, seconds(size))
    return sizes


def test_nobody_asks_and_they_stay_whole(clock: Clock) -> None:
    assert settled(BriefPasses(8, clock), lambda n: 0.08 * n) == [8] * 6


def test_what_is_as_quick_an_item_alone_is_computed_alone(clock: Clock) -> None:
    passes = BriefPasses(8, clock)
    passes.asked()
    assert settled(passes, lambda n: 0.01 + 0.08 * n) == [8, 4, 2, 1, 1, 1]
    assert passes.most("texts") == 8, "which have costs of their own"


def test_halving_ends_where_a_pass_is_brief(clock: Clock) -> None:
    passes = BriefPasses(8, clock)
    passes.asked()
    assert settled(passes, lambda n: 0.01 * n) == [8, 4, 4, 4, 4, 4]
    assert settled(passes, lambda n: 0.001 * n, "texts") == [8] * 6


def test_halving_ends_where_it_makes_each_item_dear(clock: Clock) -> None:
    """With many cores, a pass of one takes about as long as one of four."""
    passes = BriefPasses(8, clock)
    passes.asked()
    assert settled(passes, lambda n: 0.10 + 0.03 * n) == [8, 4, 8, 8, 8, 8]
    assert settled(passes, lambda n: 0.06 + 0.03 * n, "a fifth dearer, then a half") == [8, 4, 2, 4, 4, 4]
    assert settled(passes, lambda n: 0.5, "all the same") == [8, 4, 8, 8, 8, 8]


def test_a_pass_that_a_busy_machine_made_long_is_forgiven_when_a_quicker_one_shows_it(clock: Clock) -> None:
    passes = BriefPasses(8, clock)
    passes.asked()
    passes.took("images", 8, 0.4)
    assert passes.most("images") == 4
    passes.took("images", 8, 0.04)
    assert passes.most("images") == 8


def test_a_minute_after_the_last_request_they_are_whole_again(clock: Clock) -> None:
    passes = BriefPasses(8, clock)
    passes.asked()
    settled(passes, lambda n: 0.08 * n)
    clock.now += RECENT
    assert passes.most("images") == 1
    clock.now += 1
    assert passes.most("images") == 8


def test_costs_are_measured_anew_now_and_then(clock: Clock) -> None:
    passes = BriefPasses(8, clock)
    passes.asked()
    settled(passes, lambda n: 0.08 * n)
    clock.now += REMEMBERED + 1
    passes.asked()
    assert settled(passes, lambda n: 0.005 * n) == [8] * 6


@pytest.mark.parametrize(("most", "sizes"), [(1, [1] * 6), (3, [3, 1, 1, 1, 1, 1]), (10, [10, 5, 2, 1, 1, 1])])
def test_any_number_of_items_can_be_halved(clock: Clock, most: int, sizes: list[int]) -> None:
    passes = BriefPasses(most, clock)
    passes.asked()
    assert settled(passes, lambda n: 0.08 * n) == sizes
