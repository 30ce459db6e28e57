"""The inputs of a shard's job: where its plan is, and its place in it. No pixels pass through the queue."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from clip_queue.shared.fields import known_fields
from clip_queue.shared.job import Inputs


@dataclass(frozen=True)
class ShardReference:
    """Shard number ``shard`` of the plan with the id ``plan`` in the folder ``output``, a path or a URL.

    ``confined``: nothing outside of the places that the settings allow may be read (:mod:`clip_queue.shared.roots`).
    """

    output: str
    plan: str
    shard: int
    confined: bool = False

    def to_inputs(self) -> Inputs:
        value = {"output": self.output, "plan": self.plan, "shard": self.shard}
        return Inputs([orjson.dumps({**value, "confined": True} if self.confined else value)])

    @classmethod
    def from_inputs(cls, inputs: Inputs) -> ShardReference:
        return cls(**known_fields(cls, orjson.loads(inputs.items[0])))
