"""A shard in one process, with a model that computes nothing: an image's vector is 1, a text's its length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np

from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.shard.halves import Embedded
from clip_queue.bulk.shard.pipeline import Pipeline
from clip_queue.shared.errors import ClipError, TextTooLong
from clip_queue.shared.lane import Lane
from clip_queue.shared.models import ModelInfo
from clip_queue.sources.source import Row, Source
from clip_queue.worker.inference.decode import decode
from tests.images import noise_image

INFO = ModelInfo("m", "none", "f", 1, 8, (4, 4), "fp32")
IMAGE = noise_image(1, (8, 8))
IMAGES = Source("", "folder", images=True, texts=False)
TEXTS = Source("", "text", images=False, texts=True)
BOTH = Source("", "folder", images=True, texts=True)


class Model:
    draft = 0

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fails: Callable[[list[Any]], bool] = lambda batch: False

    def preprocess(self, image: Any) -> Any:
        return image.resize((4, 4))

    def stack(self, images: list[Any]) -> np.ndarray:
        return np.stack(images)

    def embed_stack(self, stack: np.ndarray) -> Any:
        return self._pass(list(stack), np.ones((len(stack), 1), dtype=np.float32))

    def tokenizer(self, text: str) -> np.ndarray:
        if len(text) > 8:
            raise TextTooLong("too long")
        return np.arange(len(text))

    def embed_texts(self, texts: list[np.ndarray]) -> Any:
        return self._pass(texts, np.array([[len(t)] for t in texts], dtype=np.float32))

    def _pass(self, batch: list[Any], features: np.ndarray) -> Any:
        if self.fails(batch):
            raise RuntimeError("this batch cannot be computed")
        self.batches.append(len(batch))
        return SimpleNamespace(result=lambda: features)


def passes(model: Any) -> Any:
    """In the place of the engine's passes."""
    return SimpleNamespace(
        dataset_images=lambda stack: model.embed_stack(stack), dataset_texts=lambda texts: model.embed_texts(texts)
    )


def unexpected(error: BaseException) -> None:
    raise AssertionError from error


def decoded(model: Model, lane: Lane, data: bytes, unwanted: Callable[[], bool]) -> Future[Any]:
    done: Future[Any] = Future()
    try:
        done.set_result(decode(data, model.preprocess, max_bytes=2**24, max_pixels=2**24))
    except ClipError as error:
        done.set_exception(error)
    return done


def embedded(
    engine: Any, rows: Iterator[Row], source: Source = TEXTS, batch: int = 4, **options: Any
) -> list[Embedded]:
    plan = RunPlan("p", source, INFO, PlanOptions(batch_size=batch), 1, None)
    return [*Pipeline(engine, plan, options.get("should_stop", lambda: False)).embed(rows)]


def texts(*some: str) -> Iterator[Row]:
    return (Row({"caption": text}, text=text) for text in some)


def names(parts: list[Embedded]) -> list[str]:
    return [row.columns["caption"] for part in parts for row in part.rows]


def failures(parts: list[Embedded]) -> list[tuple[str, str]]:
    return [(part.failed[0].columns["caption"], part.failed[1].code) for part in parts if part.failed]
