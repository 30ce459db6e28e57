"""What a live worker writes about itself to Redis, and how the other processes read it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import msgpack

from clip_queue.shared.errors import Unreadable
from clip_queue.shared.fields import read
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.store import Op, call

log = logging.getLogger(__name__)

MANIFESTS = 2  # the last version of manifests of datasets that this release reads


@dataclass(frozen=True)
class WorkerInfo:
    """A worker. ``rate`` is items per second while it computes.

    ``items``, ``batches`` and ``busy`` (seconds in forward passes) count since its start. ``work`` is the kinds of jobs
    that it has handlers for, ``manifests`` the last version of manifests that it reads: 0.1 does not say it, and reads
    the first. ``stages`` are its histograms (:mod:`clip_queue.shared.stages`), ``cache_hits`` and ``cache_misses``
    texts that its cache had and had not. ``started`` is only written for processes of release 0.1, which cannot read a
    worker without it, and knows no more fields of a model: so ``logit_scales`` stand here, by name: what a model was
    trained to multiply cosines with before a softmax. ``gpu``: what its card says, see
    :meth:`clip_queue.worker.inference.gpu.Gpu.usage`.
    """

    id: str
    host: str
    pid: int
    device: str
    started: float = 0.0
    models: list[ModelInfo] = field(default_factory=list)
    rate: float = 0.0
    items: int = 0
    batches: int = 0
    busy: float = 0.0
    work: list[str] = field(default_factory=list)
    stages: list[Any] = field(default_factory=list)
    cache_hits: int = 0
    cache_misses: int = 0
    manifests: int = 1
    gpu: dict[str, float] = field(default_factory=dict)
    logit_scales: dict[str, float] = field(default_factory=dict)

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb(asdict(self))
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> WorkerInfo:
        """What a worker has written. A model of it that cannot be read is left out.

        Raises:
            Unreadable: the rest cannot be read.
        """
        try:
            raw = msgpack.unpackb(data)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise Unreadable(f"{len(data)} bytes of msgpack cannot be read ({type(error).__name__})") from None
        info = read(cls, raw)
        return replace(info, models=[model for found in info.models if (model := _model(found))])


def _model(raw: Any) -> ModelInfo | None:
    try:
        return ModelInfo.from_json(raw)
    except Unreadable as error:
        _report("a worker's model is passed over", error.message)
        return None


@lru_cache(maxsize=256)  # once for each reason: the workers are read every second
def _report(what: str, reason: str) -> None:
    log.warning("%s: %s", what, reason)


def workers() -> Op[list[WorkerInfo]]:
    """The live workers. One whose record cannot be read, from another release, is passed over."""

    def parse(replies: list[Any]) -> list[WorkerInfo]:
        return [info for data in replies[0] if (info := _worker(data))]

    return Op([call("workers")], parse)


def bury() -> Op[None]:
    """Forget the workers whose lease ran out, and count them. For who reconciles: after an outage all look dead."""
    return Op([call("bury")], lambda replies: None)


def _worker(data: bytes) -> WorkerInfo | None:
    try:
        return WorkerInfo.unpack(data)
    except Unreadable as error:
        _report("a worker is passed over", error.message)
        return None
