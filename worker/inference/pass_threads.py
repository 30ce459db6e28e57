"""How many threads a forward pass has on a CPU, and on CUDA whether a graph does it.

Threads that share a pass must each be woken, wait for the slowest, and go on spinning for a while, on the cores that
decoding, the API and the store need. So a pass has more of them only where they do most of the time what one would do
alone, which is measured when the model is loaded, by the number of rows. On CUDA a pass of a few rows is bound by its
launches (:mod:`clip_queue.worker.inference.cuda_graphs`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence, Sized

import numpy as np
import torch

from clip_queue.shared.vectors import Pixels, Tokens
from clip_queue.worker.inference.clip_model import ClipModel, PendingFeatures
from clip_queue.worker.inference.cuda_graphs import CudaGraphs

log = logging.getLogger(__name__)

LONG = 0.05  # seconds of a pass from which all threads are taken for worth it, so that nothing larger is tried
WORTH = 0.75  # share of their time that more threads must gain: of two, a pass must be 1.5 times as quick as of one
REPEATS = 3  # passes of each kind, of which the quickest counts
TEXT_TOKENS = 8  # of a usual text

Threads = list[tuple[int, int]]  # (most rows, threads of their passes), by rows; beyond the last one all threads


class PassThreads:
    """The forward passes of a model, for the batcher's threads.

    Args:
        most: rows of the largest pass that is measured.
        now: a clock, seconds.
    """

    def __init__(self, model: ClipModel, most: int = 32, now: Callable[[], float] = time.perf_counter) -> None:
        self._model, self._most, self._now = model, most, now
        self._all = torch.get_num_threads()
        self.of_images: Threads = []
        self.of_texts: Threads = []
        self._graphs = CudaGraphs.of(model) if model.device.type == "cuda" else None
        if model.device.type != "cpu" or self._all == 1:
            return
        image = np.zeros((*model.image_size, 3), np.uint8)
        text = np.ones(min(TEXT_TOKENS, model.tokenizer.context_length), np.int64)
        self.of_images = self._measured(lambda rows: model.embed_images([image] * rows))
        self.of_texts = self._measured(lambda rows: model.embed_texts([text] * rows))
        log.info("(rows, threads) of passes: images %s, texts %s, else %d", self.of_images, self.of_texts, self._all)

    def images(self, images: Sequence[Pixels]) -> PendingFeatures:
        """As :meth:`ClipModel.embed_images`."""
        if self._graphs and self._graphs.take(images):
            return self._graphs.embed_images(images)
        return self._with(self._threads(self.of_images, images), lambda: self._model.embed_images(images))

    def texts(self, texts: Sequence[Tokens]) -> PendingFeatures:
        """As :meth:`ClipModel.embed_texts`."""
        if self._graphs and self._graphs.take(texts):
            return self._graphs.embed_texts(texts)
        return self._with(self._threads(self.of_texts, texts), lambda: self._model.embed_texts(texts))

    def dataset_images(self, stack: torch.Tensor) -> PendingFeatures:
        """As :meth:`ClipModel.embed_stack`, to the same bytes whatever was measured."""
        return self._with(self._of_dataset(self.of_images, stack), lambda: self._model.embed_stack(stack))

    def dataset_texts(self, texts: Sequence[Tokens]) -> PendingFeatures:
        """As :meth:`ClipModel.embed_texts`, to the same bytes whatever was measured."""
        return self._with(self._of_dataset(self.of_texts, texts), lambda: self._model.embed_texts(texts))

    def _of_dataset(self, measured: Threads, rows: Sized) -> int:
        # At fp32 a number's last bit depends on how the threads share the work, at bf16 nothing does.
        return self._threads(measured, rows) if self._model.precision == "bf16" else self._all

    def _threads(self, measured: Threads, rows: Sized) -> int:
        return next((threads for most, threads in measured if len(rows) <= most), self._all)

    def _with(self, threads: int, forward: Callable[[], PendingFeatures]) -> PendingFeatures:
        # Of this thread of ours; 0.1 µs. Also where it is all of them: a new thread of ours begins with what is set at
        # that moment for a pass in another one.
        torch.set_num_threads(threads)
        try:
            return forward()
        finally:
            torch.set_num_threads(self._all)

    def _measured(self, forward: Callable[[int], PendingFeatures]) -> Threads:
        found: Threads = []
        rows = threads = 1
        while rows <= self._most:
            while threads < self._all:  # more rows never want fewer
                more = min(2 * threads, self._all)
                fewer_s, more_s = self._seconds(threads, more, lambda rows=rows: forward(rows))  # type: ignore[misc]
                if fewer_s > LONG:
                    return found
                if fewer_s * threads < WORTH * more_s * more:
                    break
                threads = more
            if threads == self._all:
                return found
            if found and found[-1][1] == threads:
                del found[-1]
            found.append((rows, threads))
            rows *= 2
        return found

    def _seconds(self, fewer: int, more: int, forward: Callable[[], PendingFeatures]) -> tuple[float, float]:
        """The time of a pass in so many threads, and in so many: by turns, since the machine's speed changes."""
        quickest = {fewer: float("inf"), more: float("inf")}
        for _ in range(REPEATS):
            for threads in quickest:
                began = self._now()
                self._with(threads, forward)
                quickest[threads] = min(quickest[threads], self._now() - began)
            if quickest[fewer] > LONG:
                break
        return quickest[fewer], quickest[more]
