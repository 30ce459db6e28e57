"""The largest passes, once before the first request, which on CUDA would wait for kernels to load and for memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import torch

from clip_queue.worker.inference.clip_model import ClipModel, PendingFeatures

log = logging.getLogger(__name__)


def warm_up(model: ClipModel, rows: int) -> None:
    """Compute so many images, and so many texts of the greatest length.

    A batch that does not fit is a line in the log, since batches are halved until they fit.
    """
    began = time.monotonic()
    image = np.zeros((*model.image_size, 3), np.uint8)
    text = np.ones(model.tokenizer.context_length, np.int64)
    forwards: dict[str, Callable[[], PendingFeatures]] = {
        "images": lambda: model.embed_images([image] * rows),
        "texts": lambda: model.embed_texts([text] * rows),
    }
    for what, forward in forwards.items():
        try:
            forward().result()
        except torch.cuda.OutOfMemoryError:
            log.warning(
                "%d %s at once do not fit into the device's memory, so such a batch is tried and then halved: "
                "set CLIP_QUEUE_BATCH_SIZE lower",
                rows,
                what,
            )
    log.info("computed the largest batches of %s once, in %.1f s", model.info.name, time.monotonic() - began)
