"""The operations that put jobs into the store, for whoever submits them. Others: :mod:`clip_queue.shared.ops`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clip_queue.shared import messages
from clip_queue.shared.errors import ClipError, KeyReused, QueueFull
from clip_queue.shared.held import UNLIMITED, ByteLimits, refusal, weight
from clip_queue.shared.job import Inputs, Job
from clip_queue.shared.store import Op, call
from clip_queue.shared.wire import pack_inputs


@dataclass(frozen=True)
class Submission:
    """A job that is to be accepted by the store."""

    job: Job
    inputs: Inputs
    limit: int  # most unfinished items in its lane
    deadline_in: float = 0.0  # seconds; 0: none
    listed: bool = False  # whether it appears in its owner's list
    idempotency: str = ""
    digest: str = ""
    bytes: ByteLimits = UNLIMITED


@dataclass(frozen=True)
class Accepted:
    """An accepted submission. ``duplicate``: it repeats an earlier one, and ``job_id`` is the job of that one."""

    job_id: str
    duplicate: bool = False


def accept(submissions: Sequence[Submission], *, publish: bool = True) -> Op[list[Accepted | ClipError]]:
    """Accept jobs of one model and lane, and tell the workers of them in the same step.

    Returns for each that it is accepted, or the error that refuses it, without effect on the others.

    Args:
        submissions: one at least, and at most :data:`clip_queue.shared.messages.MESSAGE`.
        publish: False: no worker hears of them.
    """

    weights: list[int] = []

    def arguments(s: Submission) -> list[Any]:
        job, packed = s.job, pack_inputs(s.inputs)
        weights.append(weight(job, packed))
        head = (
            job.id,
            job.model,
            job.lane,
            job.total,
            s.limit,
            math.ceil(s.deadline_in * 1000),
            job.owner,
            int(s.listed),
        )
        idem = (s.idempotency, s.digest, job.ttl, packed, weights[-1], s.bytes.total, s.bytes.share)
        fields = ("kind", job.kind, "reply", job.reply, "ttl", job.ttl, "on_error", job.on_error)
        refused = ("refused", json.dumps(job.refused)) if job.refused else ()
        trace = ("trace", job.trace) if job.trace else ()
        made = [*head, *idem, *fields, *refused, *trace]
        return [len(made), *made]

    def parse(replies: list[Any]) -> list[Accepted | ClipError]:
        return [_accepted(*each) for each in zip(replies[0], submissions, weights, strict=True)]

    job = submissions[0].job
    to = messages.to(job.model, job.lane) if publish else ("", "", "")
    return Op([call("accept", *to, *(value for s in submissions for value in arguments(s)))], parse)


def _accepted(reply: list[Any], s: Submission, needed: int) -> Accepted | ClipError:
    status, value = reply[0], reply[1]
    if status == b"ok":
        return Accepted(s.job.id)
    if status == b"same":
        return Accepted(value.decode(), duplicate=True)
    if status == b"reused":
        return reused()
    if status == b"held":
        return refusal(reply, needed)
    return QueueFull(f"{int(value)} items of {s.job.model!r} are waiting (limit {s.limit}); try again later.")


def accept_failed(submission: Submission, error: ClipError) -> Op[Accepted | ClipError]:
    """Accept a job that has nothing to be done, and end it with an error. No worker hears of it."""
    accepting = accept([submission], publish=False)
    failing = call("fail", submission.job.id, json.dumps(error.to_wire()))
    return Op([*accepting.commands, failing], lambda replies: accepting.parse(replies[:1])[0])


def find_idempotent(owner: str, idempotency: str, digest: str) -> Op[str | None]:
    """The job that was submitted with an idempotency key, if there is one. Raises :class:`KeyReused`."""

    def parse(replies: list[Any]) -> str | None:
        if not replies[0]:
            return None
        status, first = replies[0]
        if status == b"reused":
            raise reused()
        return str(first.decode())

    return Op([call("find_idempotent", owner, idempotency, digest)], parse)


def reused() -> KeyReused:
    """The error of an idempotency key that was used before with another body."""
    return KeyReused("This Idempotency-Key was used before with another body; use a new key.")


def forget(job_ids: Iterable[str]) -> Op[None]:
    """Remove jobs of synchronous requests that have succeeded and whose results the caller of this has."""
    return Op([call("forget", *job_ids)], lambda replies: None)


def discard(job_ids: Iterable[str]) -> Op[None]:
    """Remove jobs that could not be put in the queue, except those that a worker holds or a duplicate refers to."""
    return Op([call("discard", i) for i in job_ids], lambda replies: None)
