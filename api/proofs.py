"""When each part of each model was last proven to work, by a result that it has computed."""

from __future__ import annotations

import math
import time
from enum import StrEnum

from clip_queue.shared.job import Inputs, JobResult


class Modality(StrEnum):
    """What a part of a model computes."""

    IMAGE = "image"
    TEXT = "text"


class Proofs:
    """The results that an API process has received. There are as many entries as models have parts."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, Modality], float] = {}

    def add(self, model: str, inputs: Inputs, result: JobResult) -> None:
        """Take a result without an error, and note which part of the model has certainly computed something for it.

        No image comes from a cache, but a text may: the time in the forward pass is that of the last item, and 0 if
        that came from the cache. So beside images it is not known whether a text was computed.
        """
        if any(isinstance(item, bytes) for item in inputs.items):
            self._latest[model, Modality.IMAGE] = time.monotonic()
        elif result.timings.get("forward"):
            self._latest[model, Modality.TEXT] = time.monotonic()

    def latest(self, model: str, modality: Modality) -> float:
        """When a model last computed an image or a text for this process, by ``time.monotonic``; -inf: never."""
        return self._latest.get((model, modality), -math.inf)
