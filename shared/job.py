"""A job and its states.

::

                  ┌────────── release, lost worker ──────────┐
                  ▼                                          │
    accepted ─► queued ──────────────── claim ───────────► running
                  │                                          │
                  ├─► cancelled   (by its owner)       ◄─────┤
                  ├─► expired     (after its deadline) ◄─────┤
                  └─► failed      (worker lost too often)  ◄─┼─► succeeded

A bulk run (``embed_dataset``) is led by a command or by workers (:mod:`clip_queue.shared.runs`). One that a command
leads begins in the state running: the command holds it, and if this command dies, the run fails.

A job that has ended never changes. The store's scripts contain the same table of transitions.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from clip_queue.shared.lane import Lane


class State(StrEnum):
    QUEUED = "queued"  # accepted, and waits for a worker
    RUNNING = "running"  # a live worker holds it
    SUCCEEDED = "succeeded"  # has its result
    FAILED = "failed"  # has its error
    CANCELLED = "cancelled"  # by its owner, or because its caller left
    EXPIRED = "expired"  # its deadline passed before it ended


TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED, State.EXPIRED}),
    State.RUNNING: frozenset({State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}

FINAL: frozenset[State] = frozenset(state for state, after in TRANSITIONS.items() if not after)


class Kind(StrEnum):
    EMBED_IMAGE = "embed_image"
    EMBED_TEXT = "embed_text"
    COMPARE = "compare"
    EMBED_DATASET = "embed_dataset"  # a bulk run: a command or a worker leads it, and workers do its shards
    EMBED_SHARD = "embed_shard"  # a part of a bulk run: one worker reads, embeds and writes it


class LongTexts(StrEnum):
    FAIL = "fail"  # a text that is longer than the model takes is an error
    CUT = "cut"  # its beginning is embedded


class OnError(StrEnum):
    FAIL = "fail"  # one bad item fails the job
    SKIP = "skip"  # the result has the good items, and the errors of the bad ones


@dataclass(slots=True)
class Inputs:
    """What a job embeds. An item is an encoded image (bytes) or a text (str).

    The order of a comparison's items is that of :mod:`clip_queue.shared.comparison`. ``names`` are the names of its
    prompts, if they have names. ``cut``: the beginning of a text that is too long is embedded; a worker of 0.1 refuses
    such a text.
    """

    items: list[bytes | str]
    names: list[str] | None = None
    cut: bool = False


@dataclass(slots=True)
class Job:
    """The record of a job. Times are milliseconds since the epoch by Redis's clock; 0 means not yet, or none."""

    kind: Kind
    model: str
    total: int
    lane: Lane = Lane.INTERACTIVE
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    state: State = State.QUEUED
    owner: str = ""  # digest of the API key that it was submitted with
    reply: str = ""  # name of the list that its result is pushed to
    on_error: OnError = OnError.FAIL
    created: int = 0
    started: int = 0
    finished: int = 0
    deadline: int = 0
    expires: int = 0  # until when a finished job is kept
    ttl: int = 0  # how long it is kept after its end, ms
    attempts: int = 0
    done: int = 0
    failed: int = 0
    worker: str = ""  # the worker that holds it, or held it last
    error: dict[str, Any] | None = None
    timings: dict[str, float] = field(default_factory=dict)  # seconds in each stage
    progress: dict[str, Any] | None = None  # of a bulk run: rows per second and more
    # The errors of items that were refused before the job was submitted, by index. They are neither among the inputs
    # nor in the counts: :mod:`clip_queue.api.refused` adds them where the job is shown.
    refused: list[dict[str, Any]] = field(default_factory=list)
    trace: str = ""  # the W3C traceparent of the request that submitted it


@dataclass(slots=True)
class JobResult:
    """The result of a job. ``vectors`` are the rows (n, dimension) of its good items: float32, little-endian."""

    fingerprint: str = ""
    vectors: bytes = b""
    dimension: int = 0
    similarity: list[float] | None = None
    names: list[str] | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    timings: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] | None = None  # of a bulk run that workers have led
