"""The fixtures of the tests of the job executor."""

from __future__ import annotations

from collections.abc import Iterator

import fakeredis
import pytest

from clip_queue.shared.job import Inputs, Job, Kind
from clip_queue.shared.settings import Settings
from clip_queue.worker.executor.executor import JobExecutor
from clip_queue.worker.inference.engine import InferenceEngine
from tests.unit.worker.executor_parts import WORKER, Handler, Losing, Parts
from tests.unit.worker.models import LOAD, MODEL


@pytest.fixture
def parts() -> Iterator[Parts]:
    store, settings = Losing(fakeredis.FakeRedis()), Settings(device="cpu")
    engine = InferenceEngine(settings, load_model=LOAD)
    executor = JobExecutor(engine, store, settings, WORKER)
    engine.start()
    it = Parts(store, engine.models[MODEL], executor)  # type: ignore[arg-type]
    yield it
    it.model.gate.set()
    executor.stop()
    engine.stop()


@pytest.fixture
def handlers(parts: Parts) -> list[Handler]:
    """The handlers of jobs of the kind ``embed_shard``, in the order in which they begin."""
    begun: list[Handler] = []

    def factory(job: Job, inputs: Inputs, engine: InferenceEngine) -> Handler:
        assert engine is parts.executor.engine
        assert inputs.items == ["where"]
        begun.append(Handler(job))
        return begun[-1]

    parts.executor.handlers = {Kind.EMBED_SHARD: factory}
    return begun
