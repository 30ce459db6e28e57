"""A job and its life.

::

                  ┌───────── give back, lost worker ─────────┐
                  ▼                                          │
    accepted ─► queued ──────────────── claim ───────────► running
                  │                                          │
                  ├─► cancelled   (its owner's word)   ◄─────┤
                  ├─► expired     (past its deadline)  ◄─────┤
                  └─► failed      (worker lost too often)  ◄─┼─► succeeded

A bulk run (``embed_dataset``) starts running: the command that leads it holds it, and if that dies it has failed.

A job that has ended never changes. The same table is compiled into the store's scripts.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    QUEUED = "queued"  # accepted, waiting for a worker
    RUNNING = "running"  # a live worker holds it
    SUCCEEDED = "succeeded"  # has its result
    FAILED = "failed"  # has its error
    CANCELLED = "cancelled"  # its owner, or its caller's hanging up, ended it
    EXPIRED = "expired"  # its deadline passed before it was done


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
    EMBED_DATASET = "embed_dataset"  # a bulk run: led by a command, done as shards
    EMBED_SHARD = "embed_shard"  # a part of one: what a worker reads, embeds and writes by itself


class Lane(StrEnum):
    """Each takes what those before it leave."""

    INTERACTIVE = "interactive"  # somebody waits
    BACKGROUND = "background"  # somebody will look
    BULK = "bulk"  # shards of a dataset


class OnError(StrEnum):
    FAIL = "fail"  # one bad item fails the job
    SKIP = "skip"  # the good items are answered beside the errors of the bad ones


@dataclass(slots=True)
class Inputs:
    """What a job embeds. An item is an encoded image (bytes) or a text (str).

    ``compare`` holds its subject first and then its prompts; ``names`` are the prompts' names, if it gave any.
    """

    items: list[bytes | str]
    names: list[str] | None = None


@dataclass(slots=True)
class Job:
    """The record. Times are milliseconds since the epoch on Redis's clock; 0 means not yet, or none."""

    kind: Kind
    model: str
    total: int
    lane: Lane = Lane.INTERACTIVE
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    state: State = State.QUEUED
    owner: str = ""  # digest of the API key that submitted it
    reply: str = ""  # name of the list that its end is pushed to
    on_error: OnError = OnError.FAIL
    created: int = 0
    started: int = 0
    finished: int = 0
    deadline: int = 0
    expires: int = 0  # until when a finished job is kept
    ttl: int = 0  # how long it is kept once finished, ms
    attempts: int = 0
    done: int = 0
    failed: int = 0
    worker: str = ""  # who holds it, or held it last
    error: dict[str, Any] | None = None
    timings: dict[str, float] = field(default_factory=dict)  # seconds in each stage
    progress: dict[str, Any] | None = None  # what a bulk run says of itself


@dataclass(slots=True)
class Answer:
    """What a job came to. ``vectors`` are the good items' float32 rows (n, dimension), little-endian bytes."""

    fingerprint: str = ""
    vectors: bytes = b""
    dimension: int = 0
    similarity: list[float] | None = None
    names: list[str] | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    timings: dict[str, float] = field(default_factory=dict)
