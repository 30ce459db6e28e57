"""Fixtures of the tests of shards and of runs in one process."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.batcher import Batcher
from clip_queue.worker.inference.thread_pool import PriorityThreadPool
from tests.unit.bulk import in_process
from tests.unit.bulk.shards import Model, decoded, passes, unexpected


@pytest.fixture
def engine() -> Iterator[Any]:
    """What a pipeline needs of :class:`clip_queue.worker.inference.engine.InferenceEngine`."""
    batcher = Batcher({Lane.INTERACTIVE: 4, Lane.BACKGROUND: 4, Lane.BULK: 1}, capacity=100, fatal=unexpected)
    decoders = PriorityThreadPool(2, fatal=unexpected)
    batcher.start()
    decoders.start()
    settings = Settings(read_threads=2, read_timeout=1.5)
    model = Model()
    yield SimpleNamespace(
        models={"m": model},
        passes={"m": passes(model)},
        settings=settings,
        batcher=batcher,
        decoders=decoders,
        decode=decoded,
    )
    assert batcher.stop(5)
    decoders.stop(5)


@pytest.fixture
def worker() -> Iterator[in_process.Worker]:
    """What does a run's shards in this process."""
    with in_process.engine(Settings(models=["emoji-mini"])) as it:
        yield in_process.Worker(it)
