"""The job document: a job as its owner sees it, and its result in the shape of the synchronous route."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from clip_queue.api.clip import matrix, similarity
from clip_queue.shared.errors import BadInput
from clip_queue.shared.job import FINAL, Answer, Job, Kind, Lane, OnError, State
from clip_queue.shared.ops import View

BULK = (Kind.EMBED_DATASET, Kind.EMBED_SHARD)


class Items(BaseModel):
    total: int
    done: int
    failed: int


class Queue(BaseModel):
    """``position`` 0 is next in line; ``age_s`` is seconds since the job was accepted."""

    position: int
    age_s: float


class Error(BaseModel):
    code: str
    message: str
    index: int | None = None


class JobDocument(BaseModel):
    """Times are UTC. ``progress`` is a bulk run's. ``result`` is there once the job has succeeded, ``error`` once it
    has ended otherwise."""

    id: str
    task: Kind
    model: str
    state: State
    priority: Lane
    on_error: OnError
    items: Items
    attempts: int = Field(description="Times that a worker has taken the job up, those given back not counted.")
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    deadline: datetime | None = None
    expires: datetime | None = Field(None, description="Until when the job and its result are kept.")
    queue: Queue | None = None
    progress: dict[str, Any] | None = Field(None, description="Of a bulk run: rows per second, workers and the like.")
    timings: dict[Literal["queue", "prepare", "wait", "forward"], float] = Field(
        default={}, description="Seconds that the item answered last spent in each stage."
    )
    fingerprint: str | None = Field(None, description="Of the weights, preprocessing and precision that answered.")
    error: Error | None = None
    result: dict[str, Any] | None = None


class JobPage(BaseModel):
    jobs: list[JobDocument]
    cursor: str | None = Field(description="What `?cursor=` takes for the next page; null: there is none.")


def document(view: View, answer: Answer | None = None) -> dict[str, Any]:
    """A job's document as plain values for orjson (:class:`JobDocument`)."""
    job = view.job
    out: dict[str, Any] = {
        "id": job.id,
        "task": job.kind,
        "model": job.model,
        "state": job.state,
        "priority": job.lane,
        "on_error": job.on_error,
        "items": {"total": job.total, "done": job.done, "failed": job.failed},
        "attempts": job.attempts,
        "created": moment(job.created),
        "started": moment(job.started),
        "finished": moment(job.finished),
        "deadline": moment(job.deadline),
        "expires": moment(job.expires),
        "queue": None,
        "progress": job.progress,
        "timings": job.timings,
        "fingerprint": answer.fingerprint if answer else None,
        "error": job.error,
        "result": None,
    }
    if view.position is not None:
        out["queue"] = {"position": view.position, "age_s": (view.now - job.created) / 1000}
    if answer and job.state is State.SUCCEEDED:
        out["result"] = result(job, answer)
    return out


def result(job: Job, answer: Answer) -> dict[str, Any]:
    """What the synchronous route would have answered; with ``skip`` a failed item's row is null, and ``errors``
    say why."""
    out: dict[str, Any] = {"inference_id": None, "frame_id": None, "time": (job.finished - job.created) / 1000}
    if job.kind in BULK:
        return {**out, "rows": job.done, "failed": job.failed}
    if job.kind is Kind.COMPARE:
        return {**out, "similarity": similarity(answer), "parent_id": None}
    if job.on_error is OnError.FAIL:
        return {**out, "embeddings": matrix(answer)}
    failed = {error["index"] for error in answer.errors}
    rows = iter(matrix(answer))
    embeddings = [None if i in failed else next(rows) for i in range(job.total)]
    return {**out, "embeddings": embeddings, "errors": answer.errors}


def array(job: Job, answer: Answer) -> NDArray[np.float32]:
    """The result as one array: (total, dimension), rows of failed items NaN; of a comparison (prompts,).

    Raises:
        BadInput: of a bulk job, whose vectors are in its output folder.
    """
    if job.kind in BULK:
        raise BadInput("The vectors of a bulk run are in its output folder.")
    if job.kind is Kind.COMPARE:
        return np.asarray(answer.similarity, dtype=np.float32)
    failed = [error["index"] for error in answer.errors]
    out = np.full((job.total, answer.dimension), np.nan, dtype=np.float32)
    out[np.setdiff1d(np.arange(job.total), failed)] = matrix(answer)
    return out


def moment(milliseconds: int) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ended(view: View) -> bool:
    return view.job.state in FINAL
