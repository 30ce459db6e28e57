"""The inputs of a shard's job: where its plan is, and its place in it. No pixels pass through the queue."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from clip_queue.shared.fields import known_fields
from clip_queue.shared.job import Inputs


@dataclass(frozen=True)
class ShardReference:
    """Shard number ``shard`` of the plan with the id ``plan`` in the folder ``output``, a path or a URL."""

    output: str
    plan: str
    shard: int

    def to_inputs(self) -> Inputs:
        return Inputs([orjson.dumps({"output": self.output, "plan": self.plan, "shard": self.shard})])

    @classmethod
    def from_inputs(cls, inputs: Inputs) -> ShardReference:
        return cls(**known_fields(cls, orjson.loads(inputs.items[0])))
