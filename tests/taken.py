"""A store whose messages a test takes, in the place of Celery's consumer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import fakeredis

from clip_queue.shared.messages import TASK
from clip_queue.shared.store import Op, Store

T = TypeVar("T")


def read(data: bytes) -> tuple[str, str, list[str]]:
    """The arguments of a message: model, lane, references."""
    message = json.loads(data)
    assert message["headers"]["task"] == TASK
    model, lane, references = json.loads(message["body"])[0]
    return model, lane, references


class TakenStore(Store):
    """A store in memory. After each operation, ``deliver`` gets the references of each message; ``sent`` keeps them."""

    def __init__(self, deliver: Callable[[list[str]], None] = lambda references: None) -> None:
        super().__init__(fakeredis.FakeRedis())
        self.sent: list[str] = []
        self._deliver = deliver

    def execute(self, op: Op[T]) -> T:
        found = super().execute(op)
        queues: Any = self.client.keys("clip.*")
        for queue in sorted(queues):
            while data := self.client.rpop(queue):
                _, _, references = read(data)  # type: ignore[arg-type]
                self.sent += references
                self._deliver(references)
        return found
