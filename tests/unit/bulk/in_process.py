"""A run in one process: a store in memory, and a worker without a model that does each shard when it is published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from clip_queue.bulk.shard.handler import ShardHandler
from clip_queue.shared import ops
from clip_queue.shared.lane import Lane
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings
from clip_queue.shared.workers import WorkerInfo
from clip_queue.worker.inference.batcher import Batcher
from clip_queue.worker.inference.thread_pool import PriorityThreadPool
from tests.taken import TakenStore
from tests.unit.bulk.shards import passes

MODEL = "m"
INFO = ModelInfo(MODEL, "none", "f", 3, 8, (4, 4), "fp32")
WORKER = "w"
ABOUT = WorkerInfo(WORKER, "h", 1, "cpu", models=[INFO], work=["embed_shard"])


class Model:
    """A text's vector is its length, three times."""

    fingerprint, draft = INFO.fingerprint, 0

    def tokenizer(self, text: str) -> np.ndarray:
        return np.arange(len(text))

    def embed_texts(self, texts: list[np.ndarray]) -> Any:
        features = np.array([[len(t)] * 3 for t in texts], dtype=np.float32)
        return SimpleNamespace(result=lambda: features)


def _unexpected(error: BaseException) -> None:
    raise AssertionError from error


@contextmanager
def engine(settings: Settings) -> Iterator[Any]:
    """What a handler needs of :class:`clip_queue.worker.inference.engine.InferenceEngine`."""
    batcher = Batcher({Lane.INTERACTIVE: 4, Lane.BACKGROUND: 4, Lane.BULK: 1}, capacity=100, fatal=_unexpected)
    decoders = PriorityThreadPool(1, fatal=_unexpected)
    batcher.start()
    decoders.start()
    try:
        model = Model()
        models, computed = {MODEL: model}, {MODEL: passes(model)}
        yield SimpleNamespace(models=models, passes=computed, settings=settings, batcher=batcher, decoders=decoders)
    finally:
        assert batcher.stop(5)
        decoders.stop(5)


class Worker:
    """In place of Celery: a message is a shard, done before its submission returns."""

    def __init__(self, engine: Any) -> None:
        self.store = TakenStore(self._work)
        self.engine = engine
        self.deaf = False  # takes messages and does nothing
        self.beat()

    def beat(self) -> None:
        self.store.execute(ops.beat(WORKER, ABOUT.pack(), 60, []))

    @property
    def sent(self) -> list[str]:
        return self.store.sent

    def _work(self, job_ids: list[str]) -> None:
        for job_id in [] if self.deaf else job_ids:
            (claim,) = self.store.execute(ops.claim([job_id], WORKER, 3))
            if claim.job is None or claim.inputs is None:
                continue
            completion = ShardHandler(claim.job, claim.inputs, self.engine).run()
            assert completion is not None
            self.store.execute(ops.finish([completion], WORKER))
