"""Celery's messages, which the store's scripts push into its queues themselves (``shared/lua/message.lua``).

So a job and the message that names it are written in one step, and no message takes a round trip of its own. Celery
makes a message of each queue once, in memory; what changes from one to the next has a mark in it. Its body is plain
JSON where kombu would write base64, which a script cannot: kombu reads both.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.transport import virtual

from clip_queue.shared.lane import Lane
from clip_queue.shared.store import Op, call

TASK = "clip.run"
MESSAGE = 64  # most references in a message
JOBS = "@jobs@"  # the mark of the jobs' ids, in the message that a script gets
_ID = "@id@"  # the mark of the message's own id


def queue_name(model: str, lane: Lane) -> str:
    """The Celery queue, and so the Redis list, of a model's lane (``reconcile.lua`` has the same format)."""
    return f"clip.{model}.{lane}"


class _Channel(virtual.Channel):
    """Keeps what it is to send."""

    body_encoding = None  # type: ignore[assignment] # kombu's own word for plain text

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:  # noqa: ARG002 - kombu's signature
        self.kept = message


class _Transport(virtual.Transport):
    Channel = _Channel


def to(model: str, lane: Lane) -> tuple[str, str, str]:
    """What the function ``publish`` of the scripts needs: the queue, a message for it, and whether what it names may be
    added to a message that waits (interactive messages name all their jobs; others only say that there is work)."""
    join = "1" if lane is Lane.INTERACTIVE else ""
    return queue_name(model, lane), _template(model, lane).replace(_ID, str(uuid.uuid4())), join


def publish(model: str, lane: Lane, references: Sequence[str]) -> Op[None]:
    """Send references to the workers: ids of jobs that are in the store, at most :data:`MESSAGE`."""
    return Op([call("publish", *to(model, lane), *references)], lambda replies: None)


@cache
def _app() -> Celery:
    """One for all messages: with its first, Celery looks through all installed packages, which takes 0.1 s."""
    return Celery("clip-queue", set_as_current=False)


@lru_cache(256)
def _template(model: str, lane: Lane) -> str:
    with Connection(transport=_Transport) as connection, connection.channel() as channel:
        # Tools show `argsrepr`. A script may add jobs to a message, so it names none.
        shown = f"({model!r}, {str(lane)!r}, …)"
        app = _app()
        app.send_task(
            TASK,
            (model, lane, [JOBS]),
            queue=queue_name(model, lane),
            task_id=_ID,
            argsrepr=shown,
            ignore_result=True,
            producer=app.amqp.Producer(channel, auto_declare=False),
        )
        made: dict[str, Any] = channel.kept
    made["properties"]["delivery_tag"] = _ID
    return json.dumps(made)
