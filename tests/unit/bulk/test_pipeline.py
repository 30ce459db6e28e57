"""Rows to vectors with a model that computes nothing: order, batches and bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.shard.pipeline import Pipeline
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import Row
from clip_queue.worker.inference.batcher import Batcher
from clip_queue.worker.inference.thread_pool import PriorityThreadPool
from tests.unit.bulk.shards import (
    IMAGE,
    IMAGES,
    INFO,
    TEXTS,
    Model,
    decoded,
    embedded,
    failures,
    names,
    passes,
    texts,
    unexpected,
)


def test_rows_keep_their_order_and_batches_are_made_of_the_good_ones_alone(engine: Any) -> None:
    some = ["a" * (1 + i % 3) if i % 5 else "far too long" for i in range(23)]
    parts = embedded(engine, texts(*some))
    good = [text for text in some if len(text) <= 8]
    assert names(parts) == good
    assert failures(parts) == [("far too long", "text_too_long")] * 5
    assert engine.models["m"].batches == [4, 4, 4, 4, 2]
    vectors = np.concatenate([part.vectors["text"] for part in parts if part.rows])
    assert vectors[:, 0].tolist() == [len(text) for text in good]


def test_batches_do_not_depend_on_which_row_is_ready_first(engine: Any) -> None:
    release = [threading.Event() for _ in range(8)]

    def slow(i: int) -> Callable[[], bytes]:
        def load() -> bytes:
            if i % 2 == 0:  # every other one comes late
                time.sleep(0.02)
            release[i].set()
            return IMAGE

        return load

    engine.settings = Settings(read_threads=8, read_timeout=5)
    parts = embedded(engine, (Row({"caption": str(i)}, image=slow(i)) for i in range(8)), IMAGES, batch=3)
    assert names(parts) == [str(i) for i in range(8)]
    assert engine.models["m"].batches == [3, 3, 2]


def test_no_more_rows_are_under_way_than_the_settings_allow(engine: Any) -> None:
    begun, done = [0], [0]
    most = [0]

    def rows() -> Iterator[Row]:
        for i in range(200):
            begun[0] += 1
            most[0] = max(most[0], begun[0] - done[0])
            yield Row({"caption": str(i)}, text="a")

    plan = RunPlan("p", TEXTS, INFO, PlanOptions(batch_size=4), 1, None)
    for part in Pipeline(engine, plan, lambda: False).embed(rows()):
        time.sleep(0.002)  # a slow writer
        done[0] += len(part.rows)
    assert done == [200]
    # What waits to be prepared (2 batches, 2 for each reader, one in hand), a batch being made, 4 handed over.
    assert most[0] <= 2 * 4 + 2 * 2 + 2 + 4 + 4 * 4 + 4


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("capacity", [1, 4])
def test_a_lane_that_is_full_is_waited_for(batch: int, capacity: int) -> None:
    """A small batch size of the worker leaves less room in the lane than a shard hands over ahead."""
    model = Model()
    batcher = Batcher({Lane.INTERACTIVE: 1, Lane.BACKGROUND: 1, Lane.BULK: 1}, capacity=capacity, fatal=unexpected)
    decoders = PriorityThreadPool(2, fatal=unexpected)
    decoders.start()
    threading.Timer(0.3, batcher.start).start()  # a pass before that takes long
    engine = SimpleNamespace(
        models={"m": model},
        passes={"m": passes(model)},
        settings=Settings(read_threads=2),
        batcher=batcher,
        decoders=decoders,
        decode=decoded,
    )
    both = replace(IMAGES, texts=True)
    rows = (Row({"caption": str(i)}, image=IMAGE, text="a") for i in range(60))
    assert names(embedded(engine, rows, both, batch)) == [str(i) for i in range(60)]
    assert batcher.stop(5)
    decoders.stop(5)
