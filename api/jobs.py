"""Jobs: submit, go away, poll. The second door on the same engine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import time
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import TypeAdapter

from clip_queue.api import body, events
from clip_queue.api.clip import COMMON_ERRORS, ErrorResponse, about, respond
from clip_queue.api.job_client import Door
from clip_queue.api.job_document import JobDocument, JobPage, array, document, ended, result
from clip_queue.api.keys import owner
from clip_queue.api.openapi import documented
from clip_queue.api.requests import HEART, JobRequest, Limits
from clip_queue.shared import ops
from clip_queue.shared.errors import BadInput, JobFinished
from clip_queue.shared.job import Answer, Job, Lane, State
from clip_queue.shared.settings import Settings

router = APIRouter(prefix="/jobs", tags=["Jobs"])

NPY = "application/x-npy"
LOOK_AGAIN = 5.0  # seconds after which a waiter looks for itself, in case news was lost

_JOB: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "No such job of yours, or its result has expired."}
}

_EXAMPLES = {
    "texts": {"task": "embed_text", "text": ["cat", "dog face"]},
    "pictures, the good ones answered whatever the others are": {
        "task": "embed_image",
        "image": [{"type": "base64", "value": HEART}],
        "on_error": "skip",
        "deadline_s": 3600,
    },
    "compare": {"task": "compare", "subject": {"type": "base64", "value": HEART}, "prompt": ["red heart", "cat"]},
}


@router.post(
    "",
    status_code=202,
    response_model=JobDocument,
    responses={
        **COMMON_ERRORS,
        200: {"model": JobDocument, "description": "The Idempotency-Key came before: its job."},
    },
    openapi_extra=documented(_JOB, _EXAMPLES),
)
async def submit(
    request: Request,
    idempotency_key: Annotated[str | None, Header(max_length=200, description="Repeats answer with one job.")] = None,
) -> Response:
    """Accept work, to be polled for. What is accepted is done, or reported as failed with the reason."""
    door: Door = request.app.state.door
    sent, tenant = await body.read(request, door.settings, _JOB)
    lane = _lane(sent, door.settings)
    digest = hashlib.sha256(orjson.dumps(sent.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()
    if idempotency_key:
        first = await door.store.run(ops.seen(tenant, idempotency_key, digest))
        if first and (found := await _look(door, first)):
            return _accepted(*found, status=200)
    model = sent.clip_version_id or door.registry.default
    door.registry.check(model, later=True)
    if lane is Lane.INTERACTIVE and not door.settings.interactive_jobs:
        raise BadInput("Field 'priority' may not be 'interactive' here (setting interactive_jobs).")

    inputs = await door.inputs(sent, Limits.of_job(door.settings))
    job = Job(
        kind=sent.kind,
        model=model,
        total=len(inputs.items),
        lane=lane,
        owner=tenant,
        on_error=sent.on_error,
        ttl=int(door.settings.result_ttl * 1000),
    )
    submission = ops.Submission(
        job,
        inputs,
        door.settings.max_queued_items,
        deadline_in=sent.deadline_s or 0.0,
        listed=True,
        idempotency=idempotency_key or "",
        digest=digest,
    )
    accepted = await door.submit(submission)
    found = await _look(door, accepted.job_id)
    if found is None:
        raise ops.unknown(accepted.job_id)
    return _accepted(*found, status=200 if accepted.again else 202)


def _lane(sent: JobRequest, settings: Settings) -> Lane:
    """The lane that a job asks for. Raises :class:`RequestValidationError`, which says what it may ask for."""
    if sent.priority in (Lane.INTERACTIVE, Lane.BACKGROUND):
        return Lane(sent.priority)
    allowed = "'background' or 'interactive'" if settings.interactive_jobs else "'background'"
    problem = {"loc": ("body", sent.task, "priority"), "msg": f"Input should be {allowed}", "type": "enum"}
    raise RequestValidationError([problem])


def _accepted(view: ops.View, answer: Answer | None, status: int) -> Response:
    return respond(document(view, answer), {"Location": f"/jobs/{view.job.id}"}, status)


@router.get("", response_model=JobPage)
async def mine(
    request: Request,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str, Query(max_length=80)] = "",
) -> Response:
    """One's own jobs, newest first, without their results."""
    door: Door = request.app.state.door
    jobs, following = await door.store.run(ops.mine(owner(request, door.settings), state, limit, cursor))
    views = [ops.View(job, None, 0) for job in jobs]
    return respond({"jobs": [document(view) for view in views], "cursor": following or None})


@router.get("/{job_id}", response_model=JobDocument, responses=_NOT_FOUND)
async def get(
    request: Request,
    job_id: str,
    wait: Annotated[float, Query(ge=0, description="Seconds to wait for the state to change.")] = 0.0,
) -> Response:
    """A job as it stands; with `wait`, as soon as its state changes."""
    door: Door = request.app.state.door
    tenant = owner(request, door.settings)
    view, answer = await find(door, job_id, tenant)
    if wait and not ended(view):
        view, answer = await _changed(door, view, min(wait, door.settings.max_wait))
    return respond(document(view, answer), about(view.job.model, answer) if answer else None)


@router.get(
    "/{job_id}/result",
    responses={
        **_NOT_FOUND,
        200: {"content": {NPY: {}}, "description": "The result as the synchronous route has it, or as an array."},
        409: {"model": ErrorResponse, "description": "The job has no result: it has not ended, or not well."},
    },
)
async def get_result(request: Request, job_id: str) -> Response:
    """The result alone: JSON, or by `Accept: application/x-npy` a NumPy array, float32, (items, dimension)."""
    door: Door = request.app.state.door
    view, answer = await find(door, job_id, owner(request, door.settings))
    if view.job.state is not State.SUCCEEDED:
        reason = f": {view.job.error['message']}" if view.job.error else ""
        raise JobFinished(f"The job has no result; it is {view.job.state}{reason}")
    if answer is None:
        raise ops.unknown(job_id)
    headers = about(view.job.model, answer)
    if NPY in request.headers.get("accept", ""):
        out = io.BytesIO()
        np.save(out, array(view.job, answer), allow_pickle=False)
        return Response(out.getvalue(), headers=headers, media_type=NPY)
    return respond(result(view.job, answer), headers)


@router.get("/{job_id}/events", responses={**_NOT_FOUND, 200: {"content": {"text/event-stream": {}}}})
async def get_events(
    request: Request, job_id: str, last_event_id: Annotated[str | None, Header(max_length=200)] = None
) -> Response:
    """Server-Sent Events: the job's document at each change of its state or progress, until it ends."""
    door: Door = request.app.state.door
    view, _ = await find(door, job_id, owner(request, door.settings))
    return events.response(door, view, last_event_id)


@router.delete(
    "/{job_id}",
    response_model=JobDocument,
    responses={**_NOT_FOUND, 409: {"model": ErrorResponse, "description": "The job has ended already."}},
)
async def cancel(request: Request, job_id: str) -> Response:
    """Cancel: a queued job never runs, a running one stops at its next item."""
    door: Door = request.app.state.door
    tenant = owner(request, door.settings)
    state, ours = await door.store.run(ops.cancel(job_id, tenant))
    if not ours:
        raise JobFinished(f"The job has ended already: it is {state}.")
    view, _ = await find(door, job_id, tenant)
    return respond(document(view))


async def find(door: Door, job_id: str, tenant: str) -> tuple[ops.View, Answer | None]:
    """A job and its answer. Raises :class:`UnknownJob`, for another's job too."""
    found = await _look(door, job_id)
    if found is None or found[0].job.owner != tenant:
        raise ops.unknown(job_id)
    return found


async def _look(door: Door, job_id: str) -> tuple[ops.View, Answer | None] | None:
    view, answer = await door.store.run(ops.outcome(job_id))
    return (view, answer) if view else None


async def _changed(door: Door, before: ops.View, wait: float) -> tuple[ops.View, Answer | None]:
    """The job once its state is not what it was, or after ``wait`` seconds."""
    until = time.monotonic() + wait
    async with door.watching(before.job.id) as waiter:
        while True:
            waiter.news.clear()
            found = await _look(door, before.job.id)
            if found is None:
                raise ops.unknown(before.job.id)
            left = until - time.monotonic()
            if found[0].job.state is not before.job.state or left <= 0:
                return found
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(waiter.news.wait(), min(left, LOOK_AGAIN))
