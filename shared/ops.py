"""The operations of the job store. Each is one atomic script of ``shared/lua``, or a pipeline of scripts."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from clip_queue.shared.errors import UnknownJob, Unreadable
from clip_queue.shared.fields import member
from clip_queue.shared.held import bounded
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.store import CLAIMED, Op, call
from clip_queue.shared.wire import pack_timings, record, unpack_inputs, unpack_result

log = logging.getLogger(__name__)

INLINE = 64 * 1024  # inputs up to this size come back with the claim, bytes
PAGE = 500  # jobs that one call reconciles


@dataclass(frozen=True)
class Claimed:
    """The reply to a claim. ``job`` is None if the worker did not get the job; then ``reason`` says why.

    ``error``: the worker has the job and cannot read its record or its inputs, so it is to fail the job. Without a
    record, ``job`` has nothing but the id.
    """

    reason: str
    job: Job | None = None
    inputs: Inputs | None = None  # None: too large, see :func:`inputs`
    error: Unreadable | None = None


class Suspicion(IntEnum):
    """What a claim takes of the jobs that have lost workers."""

    NONE = 0  # fresh jobs only
    SOME = 1  # also those that have lost workers and have more than one attempt left
    ALL = 2  # also those that have one attempt left


def claim(
    job_ids: Sequence[str], worker: str, max_attempts: int, suspicion: Suspicion = Suspicion.SOME
) -> Op[list[Claimed]]:
    """Take jobs for a worker. Those that are more suspicious than ``suspicion`` are refused, with the reason
    ``suspect``."""

    def parse_one(job_id: str, reply: list[Any]) -> Claimed:
        if reply[0] != b"yours":
            return Claimed(reply[0].decode())
        job: Job | None = None
        try:
            job = record({name: value for name, value in zip(CLAIMED, reply[2], strict=True) if value is not None})
            return Claimed("yours", job, unpack_inputs(reply[1]) if reply[1] else None)
        except Unreadable as error:
            return Claimed("yours", job or Job(member(Kind, ""), "", 0, id=job_id), error=error)

    return Op(
        [call("claim", worker, max_attempts, INLINE, int(suspicion), *job_ids)],
        lambda replies: [*map(parse_one, job_ids, replies[0])],
    )


def inputs(job_id: str) -> Op[Inputs | None]:
    """The inputs of a job; None if there are none. Raises :class:`Unreadable`."""
    return Op([("GET", f"cq:in:{job_id}")], lambda r: unpack_inputs(r[0]) if r[0] else None)


@dataclass(frozen=True)
class Completion:
    """The end of a job, from its worker."""

    job_id: str
    state: State
    result: JobResult
    done: int = 0
    failed: int = 0


def finish(completions: Sequence[Completion], worker: str) -> Op[list[bool]]:
    """End jobs that this worker holds. For each: whether this call has ended it."""

    def command(e: Completion) -> tuple[Any, ...]:
        result, packed = bounded(e.result)
        state = e.state if result is e.result else State.FAILED
        error = json.dumps(result.error) if result.error else ""
        return e.job_id, state, error, packed, e.done, e.failed, pack_timings(result.timings)

    flat = [value for each in completions for value in command(each)]
    return Op([call("finish", worker, *flat)], lambda replies: [r == 1 for r in replies[0]])


def release(job_ids: Iterable[str], worker: str) -> Op[None]:
    """Put jobs that this worker holds back in the queue."""
    return Op([call("release", i, worker) for i in job_ids], lambda replies: None)


def cancel(job_id: str, owner: str) -> Op[tuple[State, bool]]:
    """Cancel a job. The state that it has now, and whether this call has ended it.

    Raises:
        UnknownJob: this owner has no such job.
    """

    def parse(replies: list[Any]) -> tuple[State, bool]:
        if not replies[0]:
            raise unknown(job_id)
        state, ours = replies[0]
        return member(State, state.decode()), ours == 1

    return Op([call("cancel", job_id, owner)], parse)


def unknown(job_id: str) -> UnknownJob:
    return UnknownJob(f"No job {job_id[:40]!r}: it never was, or its result has expired.")


def beat(worker: str, info: bytes, lease: float, held: Iterable[tuple[str, int, int]]) -> Op[list[str]]:
    """Renew a worker's lease for ``lease`` seconds.

    Args:
        held: the jobs that it holds: (id, items done, items failed).

    Returns:
        The ids of jobs in ``held`` that it does not hold any more.
    """
    flat = [value for triple in held for value in triple]
    return Op([call("beat", worker, info, int(lease * 1000), *flat)], lambda r: [i.decode() for i in r[0]])


def deregister(worker: str) -> Op[None]:
    """End a worker's lease."""
    return Op([("DEL", f"cq:worker:{worker}"), ("SREM", "cq:workers", worker)], lambda r: None)


@dataclass(frozen=True)
class Page:
    """A page of a reconciling pass: which jobs to send again, by lane, and where the next page begins (-1: no more)."""

    offset: int
    resend: dict[Lane, list[str]]


def reconcile(
    model: str, offset: int, max_attempts: int, resend_after: float, neglected: float, *, size: int = PAGE
) -> Op[Page]:
    """Reconcile a page of a model's unfinished jobs.

    Args:
        resend_after: seconds without a message in the queue after which a waiting job is sent again.
        neglected: seconds after which a live worker loses a running job that its heartbeats do not name.
        size: jobs in a page.
    """

    def parse(replies: list[Any]) -> Page:
        reply, resend = replies[0], dict[Lane, list[str]]()
        for lane, job_id in zip(reply[1::2], reply[2::2], strict=True):
            resend.setdefault(member(Lane, lane.decode()), []).append(job_id.decode())
        return Page(int(reply[0]), resend)

    after = int(resend_after * 1000)
    return Op([call("reconcile", model, offset, size, max_attempts, after, 12 * after, int(neglected * 1000))], parse)


@dataclass(frozen=True)
class Peeked:
    """Jobs that wait. ``suspects``: how many that have lost workers were passed over."""

    job_ids: list[str]
    suspects: int = 0


def peek_queued(model: str, lane: Lane, jobs: int, items: int) -> Op[Peeked]:
    """The ids of the oldest jobs that wait in a lane and have lost no worker: at most ``jobs``, with about ``items``
    items together."""
    return Op(
        [call("peek_queued", model, lane, jobs, items, 0)], lambda r: Peeked([*map(bytes.decode, r[0][1:])], r[0][0])
    )


def peek_suspects(model: str, lane: Lane, max_attempts: int, jobs: int, items: int) -> Op[list[str]]:
    """The ids of the oldest jobs that wait in a lane and have lost workers.

    They are at most ``jobs`` of which each has more than one attempt left, with about ``items`` items together; or, if
    the oldest has one attempt left, this one.
    """
    return Op([call("peek_queued", model, lane, jobs, items, max_attempts)], lambda r: [*map(bytes.decode, r[0][1:])])


def renew_run(run: Job, leader: str, lease: float) -> Op[State]:
    """Hold a bulk run for ``lease`` more seconds and write its progress. The state that the run has now.

    The first call creates the record. The leader is a command and no worker, so it has only this lease.
    """
    head = (run.id, leader, int(lease * 1000), run.model, run.owner, run.ttl, run.kind, run.lane)
    progress = (run.total, run.done, run.failed, json.dumps(run.progress))
    return Op([call("renew_run", *head, *progress)], lambda replies: member(State, replies[0].decode()))


@dataclass(frozen=True)
class View:
    """A job: its record, its place in the queue while it waits (0: next), and the time by the store's clock (ms)."""

    job: Job
    position: int | None
    now: int


def view(job_id: str, owner: str | None = None) -> Op[View]:
    """A job. Raises :class:`UnknownJob` if there is none, or if its owner is another than ``owner``."""

    def parse(replies: list[Any]) -> View:
        if not replies[0]:
            raise unknown(job_id)
        fields, position, now = replies[0]
        job = record(fields)
        if owner is not None and job.owner != owner:
            raise unknown(job_id)
        return View(job, position, int(now))

    return Op([call("view", job_id)], parse)


def outcome(job_id: str) -> Op[tuple[View | None, JobResult | None]]:
    """A job and its result, if it has one. (None, None) if there is no such job."""

    def parse(replies: list[Any]) -> tuple[View | None, JobResult | None]:
        if not replies[0]:
            return None, None
        fields, position, now = replies[0]
        result = unpack_result(replies[1]) if replies[1] else None
        return View(record(fields), position, int(now)), result

    return Op([call("view", job_id), ("GET", f"cq:out:{job_id}")], parse)


def jobs(job_ids: Sequence[str]) -> Op[list[Job | None]]:
    """Jobs, in one round trip; None where there is none."""
    return Op([call("view", i) for i in job_ids], lambda replies: [record(r[0]) if r else None for r in replies])


def watch(job_id: str, reply: str) -> Op[bool]:
    """Have a message pushed to the list ``reply`` at each change of a job. False if there is no such job."""
    return Op([call("watch", job_id, reply)], lambda r: r[0] == 1)


def list_jobs(owner: str, state: State | None, limit: int, cursor: str) -> Op[tuple[list[Job], str]]:
    """A page of an owner's jobs, newest first, and the cursor of the next page (empty: there is none).

    A record that cannot be read is left out.
    """

    def parse(replies: list[Any]) -> tuple[list[Job], str]:
        jobs = []
        for fields in replies[0][1:]:
            try:
                jobs.append(record(fields))
            except Unreadable as error:
                log.warning("a job is left out of a list: %s", error.message)
        return jobs, replies[0][0].decode()

    return Op([call("list_jobs", owner, state or "", limit, cursor)], parse)
