"""How the forward pass of a few rows is made cheap: on a CPU by one of torch's threads, on CUDA by a graph.

On a CPU a pass of a few rows is as quick with one thread as with all, since to wake the others costs what they save.
They also go on spinning for a while, on the cores that decoding, the API and the store need. How many rows are few is
measured when the model is loaded. On CUDA such a pass is bound by its launches
(:mod:`clip_queue.worker.inference.cuda_graphs`). Passes of datasets do not come here: their bytes must not depend on a
measurement.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from clip_queue.shared.vectors import Pixels, Tokens
from clip_queue.worker.inference.clip_model import ClipModel, PendingFeatures
from clip_queue.worker.inference.cuda_graphs import CudaGraphs

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8)  # rows that are tried
LONG = 0.02  # seconds of one row from which more threads help for certain, so that nothing else is tried
WORTH = 1.1  # what all threads must be quicker by
REPEATS = 3  # passes of each kind, of which the quickest counts
TEXT_TOKENS = 8  # of a usual text


class PassThreads:
    """The forward passes of a model for requests and jobs. Call them in one thread.

    Args:
        now: a clock, seconds.
    """

    def __init__(self, model: ClipModel, now: Callable[[], float] = time.perf_counter) -> None:
        self._model = model
        self._all = torch.get_num_threads()
        self.few_images = self.few_texts = 0  # most rows that one thread computes
        self._graphs = CudaGraphs.of(model) if model.device.type == "cuda" else None
        if model.device.type != "cpu" or self._all == 1:
            return
        image = np.zeros((*model.image_size, 3), np.uint8)
        text = np.ones(min(TEXT_TOKENS, model.tokenizer.context_length), np.int64)
        self.few_images = self._measured(lambda rows: model.embed_images([image] * rows), now)
        self.few_texts = self._measured(lambda rows: model.embed_texts([text] * rows), now)
        log.info("one thread computes up to %d images, up to %d texts", self.few_images, self.few_texts)

    def images(self, images: Sequence[Pixels]) -> PendingFeatures:
        """As :meth:`ClipModel.embed_images`."""
        if self._graphs and self._graphs.take(images):
            return self._graphs.embed_images(images)
        return self._with(1 if len(images) <= self.few_images else self._all, lambda: self._model.embed_images(images))

    def texts(self, texts: Sequence[Tokens]) -> PendingFeatures:
        """As :meth:`ClipModel.embed_texts`."""
        if self._graphs and self._graphs.take(texts):
            return self._graphs.embed_texts(texts)
        return self._with(1 if len(texts) <= self.few_texts else self._all, lambda: self._model.embed_texts(texts))

    def _with(self, threads: int, forward: Callable[[], PendingFeatures]) -> PendingFeatures:
        if threads == self._all:
            return forward()
        torch.set_num_threads(threads)  # of this thread of ours; 0.1 µs
        try:
            return forward()
        finally:
            torch.set_num_threads(self._all)

    def _measured(self, forward: Callable[[int], PendingFeatures], now: Callable[[], float]) -> int:
        few = 0
        for rows in SIZES:
            quickest = dict.fromkeys((1, self._all), float("inf"))
            for _ in range(REPEATS):
                for threads in quickest:
                    began = now()
                    self._with(threads, lambda rows=rows: forward(rows))  # type: ignore[misc]
                    quickest[threads] = min(quickest[threads], now() - began)
                if rows == 1 and quickest[1] > LONG:
                    return 0
            if quickest[1] > WORTH * quickest[self._all]:
                break
            few = rows
        return few
