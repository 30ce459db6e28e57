"""What a live worker says of itself in Redis, and what the API makes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack

from clip_queue.shared.store import Op, call


@dataclass(frozen=True)
class ModelInfo:
    """A model as a worker serves it. ``image_size`` is (height, width) in pixels; ``precision``, ``resize`` and
    ``jpeg_draft`` are what the settings of these names came to."""

    name: str
    source: str
    fingerprint: str
    dimension: int
    context_length: int
    image_size: tuple[int, int]
    precision: str
    resize: str = "exact"
    jpeg_draft: float = 0.0


@dataclass(frozen=True)
class WorkerInfo:
    """A worker. ``rate`` is items per second while it computes; ``items``, ``batches`` and ``busy`` (seconds in forward
    passes) count since its start. ``work``: kinds of jobs it can do beside its own."""

    id: str
    host: str
    pid: int
    device: str
    started: float
    models: list[ModelInfo] = field(default_factory=list)
    rate: float = 0.0
    items: int = 0
    batches: int = 0
    busy: float = 0.0
    work: list[str] = field(default_factory=list)

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb(asdict(self))
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> WorkerInfo:
        raw: dict[str, Any] = msgpack.unpackb(data)
        raw["models"] = [ModelInfo(**{**m, "image_size": tuple(m["image_size"])}) for m in raw["models"]]
        return cls(**{name: value for name, value in raw.items() if name in cls.__dataclass_fields__})


def workers() -> Op[list[WorkerInfo]]:
    """The workers that live."""
    return Op([call("workers")], lambda replies: [WorkerInfo.unpack(data) for data in replies[0]])
