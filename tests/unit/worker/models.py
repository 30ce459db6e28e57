"""Stand-ins of :class:`clip_queue.worker.inference.clip_model.ClipModel` that compute nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from clip_queue.shared.models import ModelInfo
from clip_queue.shared.vectors import Matrix, Pixels
from clip_queue.worker.inference.engine import LoadModel

MODEL = "emoji-mini"
WAIT = 10.0  # seconds; only a bug lets them pass


class Model:
    """A text's vector is its number of characters, an image's the sum of its pixels.

    While :attr:`gate` is cleared, no forward pass ends. :attr:`batches` keeps the lengths of the texts of each pass.
    """

    fingerprint, precision, draft, logit_scale = "f", "fp32", 0, 20.0
    device = SimpleNamespace(type="none")
    info = ModelInfo(MODEL, "none", fingerprint, 1, 77, (2, 2), precision)

    def __init__(self, *_: object) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        self.images = 0  # that have been computed

    def preprocess(self, image: Any) -> Pixels:
        return np.asarray(image)

    def tokenizer(self, text: str) -> list[str]:
        if text == "choke":
            raise LookupError(text)
        return list(text)

    def embed_texts(self, texts: Sequence[list[str]]) -> Any:
        self.batches.append([len(t) for t in texts])
        return self._result([len(t) for t in texts])

    def embed_images(self, images: Sequence[Pixels]) -> Any:
        self.images += len(images)
        return self._result([int(i.sum()) for i in images])

    def _result(self, values: Sequence[int]) -> Any:
        self.gate.wait(WAIT)
        features: Matrix = np.array([[value] for value in values], dtype=np.float32)
        return SimpleNamespace(result=lambda: features)


LOAD: LoadModel = Model  # type: ignore[assignment]
