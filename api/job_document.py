"""The job document: a job as its owner sees it, and its result as the synchronous route returns it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from clip_queue.api.clip import embeddings, matrix, similarity
from clip_queue.api.refused import complete_job, complete_result
from clip_queue.shared.errors import BadInput
from clip_queue.shared.fields import is_known
from clip_queue.shared.job import FINAL, Job, JobResult, Kind, OnError, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.ops import View

BULK = (Kind.EMBED_DATASET, Kind.EMBED_SHARD)


class Items(BaseModel):
    total: int
    done: int
    failed: int


class Queue(BaseModel):
    """``position`` 0 is the next job; ``age_s`` is the seconds since the job was accepted."""

    position: int
    age_s: float


class Error(BaseModel):
    code: str
    message: str
    index: int | None = None


class JobDocument(BaseModel):
    """Times are UTC. Only a bulk run has ``progress``. A job that has succeeded has a ``result``, one that has ended
    otherwise an ``error``."""

    id: str
    task: Kind
    model: str
    state: State
    priority: Lane
    on_error: OnError
    items: Items
    attempts: int = Field(description="How often a worker has started the job, except where it gave the job back.")
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    deadline: datetime | None = None
    expires: datetime | None = Field(None, description="Until when the job and its result are kept.")
    queue: Queue | None = None
    progress: dict[str, Any] | None = Field(None, description="Of a bulk run: rows per second, workers and more.")
    timings: dict[Literal["queue", "prepare", "wait", "forward"], float] = Field(
        default={}, description="Seconds that the item that was ready last spent in each stage."
    )
    fingerprint: str | None = Field(None, description="Of the weights, preprocessing and precision of the result.")
    error: Error | None = None
    result: dict[str, Any] | None = None


class JobPage(BaseModel):
    jobs: list[JobDocument]
    cursor: str | None = Field(description="The value of `?cursor=` for the next page; null: there is none.")


def document(view: View, result: JobResult | None = None) -> dict[str, Any]:
    """A job's document (:class:`JobDocument`) as values that orjson can write."""
    job = complete_job(view.job, result.names if result else None)
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
        "fingerprint": result.fingerprint if result else None,
        "error": job.error,
        "result": None,
    }
    if view.position is not None:
        out["queue"] = {"position": view.position, "age_s": (view.now - job.created) / 1000}
    if result and job.state is State.SUCCEEDED:
        out["result"] = result_document(view.job, result)
    return out


def result_document(job: Job, result: JobResult) -> dict[str, Any]:
    """The response of the synchronous route."""
    out: dict[str, Any] = {"inference_id": job.id, "frame_id": None, "time": (job.finished - job.created) / 1000}
    if not is_known(job.kind):
        return out  # of a later release: its own API shows more
    if job.kind in BULK:
        return {**out, "rows": job.done, "failed": job.failed, **(result.report or {})}
    if job.kind is Kind.COMPARE:
        return {**out, "similarity": similarity(result), "parent_id": None}
    return {**out, **embeddings(complete_result(job, result), skip=job.on_error is OnError.SKIP)}


def array(job: Job, result: JobResult) -> NDArray[np.float32]:
    """The result as one array (total, dimension), with NaN in the rows of failed items. Of a comparison: (prompts,).

    Raises:
        BadInput: the job is a bulk job, so its vectors are in its output folder; or it is of an unknown kind.
    """
    if not is_known(job.kind):
        raise BadInput(f"This API does not know results of jobs of kind {str(job.kind)!r}.")
    if job.kind in BULK:
        raise BadInput("The vectors of a bulk run are in its output folder.")
    if job.kind is Kind.COMPARE:
        return np.asarray(result.similarity, dtype=np.float32)
    failed = [error["index"] for error in complete_result(job, result).errors]
    total = complete_job(job).total
    out = np.full((total, result.dimension), np.nan, dtype=np.float32)
    out[np.setdiff1d(np.arange(total), failed)] = matrix(result)
    return out


def moment(milliseconds: int) -> str | None:
    """A time in ISO 8601; None for 0, which means that there is none."""
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ended(view: View) -> bool:
    return view.job.state in FINAL
