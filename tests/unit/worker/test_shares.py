"""A batcher of two threads, as on a CPU: the lanes of one do not wait for the other's, which gives way."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from clip_queue.shared.lane import Lane
from clip_queue.worker.inference.priority import Share
from tests.harness import wait_for
from tests.unit.worker.batcher_items import WAIT, Entry, Fatal, Make, Model, Ready, busy, put
from tests.unit.worker.batcher_items import batcher as batcher  # the fixture

TWO = (Share((Lane.INTERACTIVE,)), Share((Lane.BACKGROUND, Lane.BULK), nice=5))


def test_with_a_thread_of_its_own_a_lane_waits_for_no_pass_of_another(batcher: Make) -> None:
    slow, fast = Model(gated=True), Model()
    one = batcher(shares=TWO)
    beside = put(one, [Entry(0, slow, Lane.BACKGROUND)])
    assert slow.entered.acquire(timeout=WAIT)
    beside += put(one, [Entry(1, slow, Lane.BULK), Entry(2, slow, Lane.BACKGROUND)])
    asked = put(one, [Entry(n, fast) for n in range(3)])
    assert [entry.wait() for entry in asked] == [0, 2, 4]
    assert one.busy_for() > 0, "the other pass goes on"
    slow.gate.release(3)
    assert [entry.wait() for entry in beside] == [0, 2, 4]
    assert slow.passes == [[0], [2], [1]], "background before bulk"


def test_a_pass_of_another_thread_is_no_reason_to_wait_with_background_work(batcher: Make) -> None:
    model, other = Model(gated=True), Model()
    one = batcher(shares=TWO)
    first = busy(one, model)
    beside = put(one, [Entry(n, other, Lane.BACKGROUND) for n in range(3)])
    assert [entry.wait() for entry in beside] == [0, 2, 4]
    model.gate.release()
    assert first.wait() == -2


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own elsewhere")
def test_what_nobody_waits_for_gives_way(batcher: Make) -> None:
    priorities: dict[Any, int] = {}

    def forward(payloads: Sequence[Any]) -> Ready:
        priorities[payloads[0]] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return Ready(np.zeros((len(payloads), 1), np.float32))

    one = batcher(shares=TWO)
    for entry in put(one, [Entry(lane, forward, lane) for lane in Lane]):
        entry.wait()
    here = os.getpriority(os.PRIO_PROCESS, 0)
    assert [priorities[lane] - here for lane in Lane] == [0, 5, 5]


@pytest.mark.parametrize("lane", [Lane.INTERACTIVE, Lane.BACKGROUND])
def test_a_pass_that_takes_too_long_is_overdue(batcher: Make, lane: Lane) -> None:
    model, one = Model(gated=True), batcher(shares=TWO)
    assert one.overdue(0) == 0
    entry = put(one, [Entry(1, model, lane)])[0]
    wait_for(lambda: one.overdue(0.1) > 0.1, WAIT)
    assert one.overdue(WAIT) == 0
    model.gate.release()
    assert entry.wait() == 2
    wait_for(lambda: one.overdue(0) == 0, WAIT)


def test_the_time_of_a_pass_that_gives_way_stands_still_beside_another(batcher: Make) -> None:
    first, slow, one = Model(gated=True), Model(gated=True), batcher(shares=TWO)
    beside = put(one, [Entry(1, slow, Lane.BACKGROUND)])[0]
    assert slow.entered.acquire(timeout=WAIT)
    wait_for(lambda: one.overdue(0), WAIT)
    for _ in range(2):
        asked = busy(one, first)
        before = one.busy_for()
        wait_for(lambda before=before: one.busy_for() > before + 0.3, WAIT)  # type: ignore[misc]
        first.gate.release()
        asked.wait()
    wait_for(lambda: one.overdue(0.1), WAIT)
    assert 0.1 < one.overdue(0.1) <= one.busy_for() - 0.6
    slow.gate.release()
    assert beside.wait() == 2


def test_the_death_of_one_thread_is_seen(batcher: Make, caplog: pytest.LogCaptureFixture) -> None:
    ends: list[BaseException] = []
    one = batcher(shares=TWO, fatal=ends.append)
    model = Model()
    put(one, [Fatal(1, model, Lane.BACKGROUND)])
    wait_for(lambda: not one.alive(), WAIT)
    assert [type(e) for e in ends] == [SystemExit]
    put(one, [fine := Entry(4, model)])
    assert fine.wait() == 8, "until the process has ended"


def test_busy_counts_passes_at_once_once(batcher: Make) -> None:
    model, one = Model(gated=True), batcher(shares=TWO)
    began = time.monotonic()
    first = busy(one, model)
    beside = put(one, [Entry(1, model, Lane.BACKGROUND)])[0]
    assert model.entered.acquire(timeout=WAIT)
    wait_for(lambda: one.busy_seconds() > 0.1, WAIT)
    model.gate.release(2)
    assert {first.wait(), beside.wait()} == {-2, 2}
    wait_for(lambda: one.busy_for() == 0, WAIT)
    assert 0.1 < one.busy <= time.monotonic() - began
    assert one.busy_seconds() == one.busy


def test_on_stopping_one_thread_may_end_before_the_other(batcher: Make) -> None:
    model, one = Model(gated=True), batcher(shares=TWO)
    beside = put(one, [Entry(1, model, Lane.BACKGROUND)])[0]
    assert model.entered.acquire(timeout=WAIT)
    assert not one.stop(0.2), "a pass is under way"
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("batcher")] == [
        "batcher-background"
    ]
    assert one.alive(), "as the heartbeat, which ends the process else, has to see it"
    model.gate.release()
    assert beside.wait() == 2
    assert one.stop(WAIT)
    assert not one.alive()
