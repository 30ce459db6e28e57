"""A shard whose reads hang, or that is taken away: what becomes of its rows and its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from clip_queue.bulk.shard import readers
from clip_queue.bulk.shard.pipeline import Abandoned
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import Row, SourceError
from tests.harness import wait_for
from tests.unit.bulk.shards import (
    IMAGE,
    IMAGES,
    embedded,
    names,
)


def test_a_read_that_hangs_is_its_own_rows_error(engine: Any) -> None:
    gate = threading.Event()

    def hang() -> bytes:
        gate.wait(10)
        return IMAGE

    rows = (Row({"caption": str(i)}, image=hang if i == 2 else lambda: IMAGE) for i in range(5))
    parts = embedded(engine, rows, IMAGES)
    gate.set()
    assert names(parts) == ["0", "1", "3", "4"]
    error = next(part.failed[1] for part in parts if part.failed)
    assert "could not be read within 1.5 s" in error.message


def test_a_source_whose_every_read_hangs_ends_the_shard(engine: Any) -> None:
    gate = threading.Event()
    rows = (Row({"caption": str(i)}, image=lambda: bytes(gate.wait(20))) for i in range(50))
    with pytest.raises(SourceError, match=r"reads in a row took more than"):
        embedded(engine, rows, IMAGES)
    gate.set()


def test_a_container_that_gives_no_row_ends_the_shard(engine: Any) -> None:
    gate = threading.Event()

    def rows() -> Iterator[Row]:
        yield Row({"caption": "a"}, text="a")
        gate.wait(20)

    with pytest.raises(SourceError, match=r"no row for 1.5 s"):
        embedded(engine, rows())
    gate.set()


def test_an_abandoned_shard_stops_at_once(engine: Any) -> None:
    stopped = [False]
    gate = threading.Event()

    def load() -> bytes:
        stopped[0] = True
        gate.wait(20)
        return IMAGE

    engine.settings = Settings(read_timeout=60)
    began = time.monotonic()
    with pytest.raises(Abandoned):
        embedded(engine, iter([Row({"caption": "x"}, image=load)]), IMAGES, should_stop=lambda: stopped[0])
    gate.set()
    assert time.monotonic() - began < 5


def test_threads_end_with_the_shard(engine: Any) -> None:
    before = set(threading.enumerate())  # those of an earlier test may still be ending
    embedded(engine, (Row({"caption": str(i)}, image=lambda: IMAGE) for i in range(20)), IMAGES)
    assert set(threading.enumerate()) <= before


def test_threads_do_not_grow_with_the_shards_whose_reads_hang(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_LEFT", 8)
    monkeypatch.setattr(readers, "STOP_TIMEOUT", 0.1)
    gate = threading.Event()
    engine.settings = Settings(read_threads=4, read_timeout=0.25)
    before = threading.active_count()

    def hang() -> bytes:
        gate.wait(60)
        return IMAGE

    reasons = []
    try:
        for _ in range(20):
            with pytest.raises(SourceError) as told:
                embedded(engine, (Row({"caption": str(i)}, image=hang) for i in range(50)), IMAGES)
            reasons.append(told.value.message)
        assert threading.active_count() - before <= 8 + 5
        assert "reads of earlier shards still hang in this worker" in reasons[-1]
    finally:
        gate.set()
    wait_for(lambda: threading.active_count() <= before, 10, "the threads to end")
    assert names(embedded(engine, iter([Row({"caption": "x"}, image=lambda: IMAGE)]), IMAGES)) == ["x"]


def test_a_first_row_that_comes_after_its_shard_is_over_starts_no_threads(engine: Any) -> None:
    gate = threading.Event()
    engine.settings = Settings(read_threads=16, read_timeout=0.25)
    before = threading.active_count()

    def late() -> Iterator[Row]:
        gate.wait(60)
        yield Row({"caption": "late"}, image=lambda: IMAGE)

    for _ in range(3):
        with pytest.raises(SourceError, match="the source gave no row"):
            embedded(engine, late(), IMAGES)
    assert threading.active_count() <= before + 3
    gate.set()
    wait_for(lambda: threading.active_count() <= before, 10, "the threads to end")
