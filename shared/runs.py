"""Runs that workers lead: how they are submitted, found by a worker, and looked after.

A run is a job (``embed_dataset``) that a worker holds like any other, by its one lease, while it leads: it plans, and
submits shards. It is in no lane and in no message, so that a worker of release 0.1 never sees one; workers look for one
every second. Its shards wait under a name of their own (:func:`led`) for the same reason: an earlier release would read
what the settings forbid.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from clip_queue.shared.errors import BadInput, ClipError, QueueFull, Unreadable
from clip_queue.shared.fields import member, read
from clip_queue.shared.held import UNLIMITED, ByteLimits, refusal, weight
from clip_queue.shared.job import Inputs, Job, State
from clip_queue.shared.models import LED
from clip_queue.shared.store import Op, call
from clip_queue.shared.submissions import Accepted, reused
from clip_queue.shared.wire import pack_inputs

RETRY_AFTER = 60.0  # seconds after which a run may be submitted that was refused for the number of runs


class OutputBusy(ClipError):
    """A run into the same output has not ended."""

    code, status = "output_busy", 409


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked for, as its job's inputs have it.

    ``options`` are those of :func:`clip_queue.embed`. ``confined``: it came over HTTP, so that it may read and write
    nothing but what the settings allow.
    """

    source: list[str]
    output: str
    options: dict[str, Any] = field(default_factory=dict)
    confined: bool = True

    def to_inputs(self) -> Inputs:
        value = {"source": self.source, "output": self.output, "options": self.options, "confined": self.confined}
        return Inputs([orjson.dumps(value)])

    @classmethod
    def from_inputs(cls, inputs: Inputs) -> RunRequest:
        """What :meth:`to_inputs` has written. Raises :class:`Unreadable`."""
        try:
            return read(cls, orjson.loads(inputs.items[0]))
        except (ValueError, IndexError) as error:
            raise Unreadable(f"The run's inputs cannot be read ({error}).") from None


def led(model: str) -> str:
    """The name that the shards of runs which workers lead wait under, in place of their model's."""
    return model + LED


def is_led(name: str) -> bool:
    return name.endswith(LED)


def model_of(name: str) -> str:
    """The model of a name that :func:`led` has made, or a model's name as it is."""
    return name.removesuffix(LED)


@dataclass(frozen=True)
class RunSubmission:
    """A run that is to be accepted. ``limit``: most runs that have not ended."""

    job: Job
    request: RunRequest
    limit: int
    deadline_in: float = 0.0  # seconds; 0: none
    idempotency: str = ""
    digest: str = ""
    bytes: ByteLimits = UNLIMITED


def accept_run(submission: RunSubmission) -> Op[Accepted]:
    """Accept a run; a worker finds it. The op's ``parse`` raises the error of a run that is refused.

    Raises:
        OutputBusy, QueueFull, KeyReused, TooLarge: it is refused.
    """
    job, packed = submission.job, pack_inputs(submission.request.to_inputs())
    needed = weight(job, packed)
    output = hashlib.sha256(submission.request.output.encode()).hexdigest()
    head = (job.id, job.model, job.lane, job.owner, submission.limit, math.ceil(submission.deadline_in * 1000))
    idem = (submission.idempotency, submission.digest, job.ttl, packed)
    tail = (needed, submission.bytes.total, submission.bytes.share, output, job.kind)

    def parse(replies: list[Any]) -> Accepted:
        reply = replies[0]
        status, value = reply[0], reply[1]
        if status == b"ok":
            return Accepted(job.id)
        if status == b"same":
            return Accepted(value.decode(), duplicate=True)
        if status == b"reused":
            raise reused()
        if status == b"held":
            raise refusal(reply, needed)
        if status == b"busy":
            which = f" (job {value.decode()})" if value else ""
            raise OutputBusy(f"Another run into this output has not ended{which}: wait for it, or cancel it.")
        raise QueueFull(
            f"{int(value)} runs have not ended (setting max_bulk_runs); try again later.", retry_after=RETRY_AFTER
        )

    return Op([call("accept_run", *head, *idem, *tail)], parse)


def peek_run(models: Iterable[str]) -> Op[str | None]:
    """The run that a worker which serves ``models`` is to lead next."""
    return Op([call("peek_run", *models)], lambda replies: replies[0].decode() if replies[0] else None)


def reconcile_runs(max_attempts: int, neglected: float) -> Op[int]:
    """Expire runs, and let those whose worker is lost wait for another. Returns how many wait.

    Args:
        neglected: seconds after which a live worker loses a run that its heartbeats do not name.
    """
    return Op([call("reconcile_runs", max_attempts, int(neglected * 1000))], lambda replies: int(replies[0]))


def write_progress(
    job_id: str, worker: str, rows: int, progress: dict[str, Any], *, advanced: bool
) -> Op[tuple[State, bool]]:
    """Write the progress of a run that ``worker`` leads. The state that it has now, and whether it is still this
    worker's.

    Args:
        rows: how many rows it has in all, as far as is known.
        advanced: shards were done since this worker leads: workers that were lost before do not count any more.
    """

    def parse(replies: list[Any]) -> tuple[State, bool]:
        state, ours = replies[0]
        return member(State, state.decode()), ours == 1

    return Op([call("write_progress", job_id, worker, rows, json.dumps(progress), int(advanced))], parse)


def check_sources(source: list[str]) -> None:
    """Raise :class:`BadInput` for several sources that cannot be one, of which a pattern is made."""
    if len(source) > 1 and (wrong := next((each for each in source if any(sign in each for sign in "{},*?[\\")), None)):
        raise BadInput(f"{wrong!r} cannot be one of several sources for its name: give one pattern, or plain paths.")
