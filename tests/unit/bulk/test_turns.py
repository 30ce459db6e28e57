"""Two threads at one shard: the second begins when the first has stopped."""

from __future__ import annotations

import threading

import pytest

from clip_queue.bulk.shard.pipeline import Abandoned
from clip_queue.bulk.shard.turns import Turns
from tests.harness import wait_for


def test_a_second_thread_waits_for_the_first_and_others_do_not() -> None:
    turns, first_ends, asked, began = Turns(), threading.Event(), threading.Event(), threading.Event()
    taken = threading.Event()

    def first() -> None:
        with turns.take(("out", 1), lambda: None):
            taken.set()
            first_ends.wait(10)

    def second() -> None:
        with turns.take(("out", 1), asked.set):
            began.set()

    threads = [threading.Thread(target=work, daemon=True) for work in (first, second)]
    threads[0].start()
    assert taken.wait(5)
    threads[1].start()
    assert asked.wait(5)
    with turns.take(("out", 2), lambda: None):
        assert not began.is_set()
    first_ends.set()
    wait_for(began.is_set, 5)
    for thread in threads:
        thread.join(5)


def test_who_is_told_to_stop_waits_no_longer() -> None:
    def stop() -> None:
        raise Abandoned

    turns = Turns()
    with turns.take(1, lambda: None), pytest.raises(Abandoned), turns.take(1, stop):
        pytest.fail("it is taken")
    with turns.take(1, stop):
        pass
