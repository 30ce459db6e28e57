"""The operations of the job store. Each is one atomic script (``shared/lua``), or a pipeline of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clip_queue.shared.errors import ClipError, KeyReused, QueueFull, UnknownJob
from clip_queue.shared.job import Answer, Inputs, Job, Kind, Lane, OnError, State
from clip_queue.shared.store import Op, call
from clip_queue.shared.wire import pack_answer, pack_inputs, unpack_answer, unpack_inputs

INLINE = 64 * 1024  # inputs up to this size come back with the claim, bytes


@dataclass(frozen=True)
class Submission:
    """A job on its way into the store."""

    job: Job
    inputs: Inputs
    limit: int  # most unfinished items in its lane
    deadline_in: float = 0.0  # seconds; 0: none
    listed: bool = False  # appears in its owner's list
    idempotency: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Accepted:
    """``job_id`` is another job's where an idempotent submission came again."""

    job_id: str
    created: int
    again: bool = False


def accept(submissions: Sequence[Submission]) -> Op[list[Accepted | ClipError]]:
    """Accept jobs. Each comes back accepted, or as the error that refuses it; one refusal harms no other."""

    def command(s: Submission) -> tuple[Any, ...]:
        job = s.job
        head = (job.id, job.model, job.lane, job.total, s.limit, int(s.deadline_in * 1000), job.owner, int(s.listed))
        idem = (s.idempotency, s.digest, job.ttl, pack_inputs(s.inputs))
        return call(
            "accept", *head, *idem, "kind", job.kind, "reply", job.reply, "ttl", job.ttl, "on_error", job.on_error
        )

    def parse(replies: list[Any]) -> list[Accepted | ClipError]:
        return [_accepted(reply, s) for reply, s in zip(replies, submissions, strict=True)]

    return Op([command(s) for s in submissions], parse)


def _accepted(reply: list[Any], s: Submission) -> Accepted | ClipError:
    word, value = reply[0], reply[1]
    if word == b"ok":
        return Accepted(s.job.id, int(value))
    if word == b"same":
        return Accepted(value.decode(), 0, again=True)
    if word == b"reused":
        return _reused()
    return QueueFull(f"{int(value)} items of {s.job.model!r} are waiting (limit {s.limit}); try again later.")


def seen(owner: str, idempotency: str, digest: str) -> Op[str | None]:
    """The job that an idempotency key stands for already, if it does. Raises :class:`KeyReused`."""

    def parse(replies: list[Any]) -> str | None:
        if not replies[0]:
            return None
        word, first = replies[0]
        if word == b"reused":
            raise _reused()
        return str(first.decode())

    return Op([call("seen", owner, idempotency, digest)], parse)


def _reused() -> KeyReused:
    return KeyReused("This Idempotency-Key was used before with another body; use a new key.")


def forget(job_ids: Iterable[str]) -> Op[None]:
    """Undo the acceptance of jobs that could not be enqueued, as far as nobody works on them or was promised them."""
    return Op([call("forget", i) for i in job_ids], lambda replies: None)


@dataclass(frozen=True)
class Claimed:
    """What a delivery may do: ``job`` is None where it has nothing to do, for ``reason``."""

    reason: str
    job: Job | None = None
    inputs: Inputs | None = None  # None: too large to come along, see :func:`inputs`


def claim(job_ids: Sequence[str], worker: str, max_attempts: int, *, alone: bool = False) -> Op[list[Claimed]]:
    """Take jobs. One whose last attempt this would be, after others that lost their workers, is left for ``alone``
    (reason ``alone``): the caller then runs it beside no other such job."""

    def parse_one(reply: list[Any]) -> Claimed:
        if reply[0] != b"yours":
            return Claimed(reply[0].decode())
        return Claimed("yours", record(reply[1]), unpack_inputs(reply[2]) if reply[2] else None)

    return Op(
        [call("claim", i, worker, max_attempts, INLINE, int(alone)) for i in job_ids],
        lambda replies: [*map(parse_one, replies)],
    )


def inputs(job_id: str) -> Op[Inputs | None]:
    return Op([("GET", f"cq:in:{job_id}")], lambda r: unpack_inputs(r[0]) if r[0] else None)


@dataclass(frozen=True)
class Ending:
    """How a worker ends a job."""

    job_id: str
    state: State
    answer: Answer
    done: int = 0
    failed: int = 0


def finish(endings: Sequence[Ending], worker: str) -> Op[list[bool]]:
    """End jobs this worker holds: True where it was this call that ended the job."""

    def command(e: Ending) -> tuple[Any, ...]:
        error = json.dumps(e.answer.error) if e.answer.error else ""
        head = (e.job_id, worker, e.state, error, pack_answer(e.answer))
        return call("finish", *head, e.done, e.failed, json.dumps(e.answer.timings))

    return Op([command(e) for e in endings], lambda replies: [r == 1 for r in replies])


def release(job_ids: Iterable[str], worker: str) -> Op[None]:
    """Give back jobs this worker holds."""
    return Op([call("release", i, worker) for i in job_ids], lambda replies: None)


def cancel(job_id: str, owner: str) -> Op[tuple[State, bool]]:
    """Cancel; the state the job is in now, and whether it was this call that ended it.

    Raises:
        UnknownJob: no such job of this owner.
    """

    def parse(replies: list[Any]) -> tuple[State, bool]:
        if not replies[0]:
            raise unknown(job_id)
        state, ours = replies[0]
        return State(state.decode()), ours == 1

    return Op([call("cancel", job_id, owner)], parse)


def unknown(job_id: str) -> UnknownJob:
    return UnknownJob(f"No job {job_id[:40]!r}: it never was, or its result has expired.")


def beat(worker: str, info: bytes, lease: float, held: Iterable[tuple[str, int, int]]) -> Op[list[str]]:
    """Renew the lease for ``lease`` seconds; ``held`` are (id, items done, items failed).

    Returns the ids of those that it holds no longer.
    """
    flat = [value for triple in held for value in triple]
    return Op([call("beat", worker, info, int(lease * 1000), *flat)], lambda r: [i.decode() for i in r[0]])


def goodbye(worker: str) -> Op[None]:
    """The worker ends: its lease with it."""
    return Op([("DEL", f"cq:worker:{worker}"), ("SREM", "cq:workers", worker)], lambda r: None)


@dataclass(frozen=True)
class Page:
    """A page of the reconciler's round: what to send again, by lane, and where the next page starts (-1: none)."""

    offset: int
    resend: dict[Lane, list[str]]


def reconcile(model: str, offset: int, max_attempts: int, resend_after: float, neglected: float) -> Op[Page]:
    """``neglected``: seconds after which a running job that no heartbeat names is nobody's, though its worker lives."""

    def parse(replies: list[Any]) -> Page:
        reply, resend = replies[0], dict[Lane, list[str]]()
        for lane, job_id in zip(reply[1::2], reply[2::2], strict=True):
            resend.setdefault(Lane(lane.decode()), []).append(job_id.decode())
        return Page(int(reply[0]), resend)

    after = int(resend_after * 1000)
    return Op([call("reconcile", model, offset, 500, max_attempts, after, 12 * after, int(neglected * 1000))], parse)


def waiting(model: str, lane: Lane, jobs: int, items: int) -> Op[list[str]]:
    """Ids of the oldest jobs that wait in a lane: at most ``jobs``, and no more than come to ``items`` items."""
    return Op([call("next", model, lane, jobs, items)], lambda r: [i.decode() for i in r[0]])


def lead(run: Job, leader: str, lease: float) -> Op[State]:
    """Hold a bulk run for ``lease`` more seconds and write its progress; the state it is in now.

    The first call makes the record. Whoever leads is no worker: it renews this one key for itself.
    """
    head = (run.id, leader, int(lease * 1000), run.model, run.owner, run.ttl, run.kind, run.lane)
    progress = (run.total, run.done, run.failed, json.dumps(run.progress))
    return Op([call("lead", *head, *progress)], lambda replies: State(replies[0].decode()))


@dataclass(frozen=True)
class View:
    """A job as it stands: its record, its place in line while queued (0: next), the store's clock (ms)."""

    job: Job
    position: int | None
    now: int


def view(job_id: str, owner: str | None = None) -> Op[View]:
    """Raises :class:`UnknownJob` for a job that is not there, or not ``owner``'s."""

    def parse(replies: list[Any]) -> View:
        if not replies[0]:
            raise unknown(job_id)
        fields, position, now = replies[0]
        job = record(fields)
        if owner is not None and job.owner != owner:
            raise unknown(job_id)
        return View(job, position, int(now))

    return Op([call("view", job_id)], parse)


def outcome(job_id: str) -> Op[tuple[View | None, Answer | None]]:
    """A job and, where it has one, its answer; (None, None) if there is no such job."""

    def parse(replies: list[Any]) -> tuple[View | None, Answer | None]:
        if not replies[0]:
            return None, None
        fields, position, now = replies[0]
        answer = unpack_answer(replies[1]) if replies[1] else None
        return View(record(fields), position, int(now)), answer

    return Op([call("view", job_id), ("GET", f"cq:out:{job_id}")], parse)


def watch(job_id: str, reply: str) -> Op[bool]:
    return Op([call("watch", job_id, reply)], lambda r: r[0] == 1)


def mine(owner: str, state: State | None, limit: int, cursor: str) -> Op[tuple[list[Job], str]]:
    """A page of an owner's jobs, newest first, and the cursor of the next page ('': none)."""

    def parse(replies: list[Any]) -> tuple[list[Job], str]:
        return [record(fields) for fields in replies[0][1:]], replies[0][0].decode()

    return Op([call("mine", owner, state or "", limit, cursor)], parse)


def record(fields: list[Any] | dict[Any, Any]) -> Job:
    """The record of a Redis hash."""
    pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
    raw = {k.decode(): v.decode() for k, v in pairs}
    numbers = ("created", "started", "finished", "deadline", "expires", "ttl", "attempts", "done", "failed")
    return Job(
        id=raw["id"],
        kind=Kind(raw["kind"]),
        model=raw["model"],
        lane=Lane(raw["lane"]),
        state=State(raw["state"]),
        total=int(raw.get("rows", raw["total"])),
        owner=raw.get("owner", ""),
        reply=raw.get("reply", ""),
        on_error=OnError(raw.get("on_error", OnError.FAIL)),
        worker=raw.get("worker", ""),
        error=json.loads(raw["error"]) if raw.get("error") else None,
        timings=json.loads(raw["timings"]) if raw.get("timings") else {},
        progress=json.loads(raw["progress"]) if raw.get("progress") else None,
        **{n: int(raw.get(n, 0)) for n in numbers},
    )
