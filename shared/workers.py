"""What a live worker writes about itself to Redis, and how the other processes read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack

from clip_queue.shared.fields import known_fields
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.store import Op, call


@dataclass(frozen=True)
class WorkerInfo:
    """A worker. ``rate`` is items per second while it computes.

    ``items``, ``batches`` and ``busy`` (seconds in forward passes) count since its start. ``work`` is the kinds of jobs
    that it has handlers for. ``started`` is only written for processes of release 0.1, which cannot read a worker
    without it.
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

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb(asdict(self))
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> WorkerInfo:
        raw: dict[str, Any] = msgpack.unpackb(data)
        return cls(**{**known_fields(cls, raw), "models": [ModelInfo.from_json(model) for model in raw["models"]]})


def workers() -> Op[list[WorkerInfo]]:
    """The live workers."""
    return Op([call("workers")], lambda replies: [WorkerInfo.unpack(data) for data in replies[0]])
