"""The routes for jobs: submit, poll, list, cancel."""

from __future__ import annotations

import hashlib
import io
import json
import time
from typing import Annotated

import numpy as np
import orjson
from fastapi import APIRouter, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import TypeAdapter

from clip_queue.api import body, datasets, events
from clip_queue.api.accept import weight
from clip_queue.api.clip import about, respond
from clip_queue.api.dataset_request import EmbedDatasetJob
from clip_queue.api.job_client import JobClient
from clip_queue.api.job_document import JobDocument, JobPage, array, document, ended, result_document
from clip_queue.api.keys import authenticate
from clip_queue.api.openapi import ABOUT, OF_A_JOB, WITH_BODY, ErrorResponse, InvalidResponse, documented, errors
from clip_queue.api.requests import HEART, ItemsJob, JobRequest, Limits
from clip_queue.shared import ops, submissions
from clip_queue.shared.errors import BadInput, JobFinished
from clip_queue.shared.held import ByteLimits
from clip_queue.shared.job import Job, JobResult, LongTexts, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings

router = APIRouter(prefix="/jobs", tags=["Jobs"])

NPY = "application/x-npy"
POLL_INTERVAL = 5.0  # seconds after which a long poll reads the store, in case a message was lost


_JOB: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
_LOCATION = {"Location": {"description": "The path of the job.", "schema": {"type": "string"}}}

_EXAMPLES = {
    "texts": {"task": "embed_text", "text": ["cat", "dog face"]},
    "images, of which bad ones are skipped": {
        "task": "embed_image",
        "image": [{"type": "base64", "value": HEART}],
        "on_error": "skip",
        "deadline_s": 3600,
    },
    "compare": {"task": "compare", "subject": {"type": "base64", "value": HEART}, "prompt": ["red heart", "cat"]},
    "a dataset": {"task": "embed_dataset", "source": "/data/photos", "output": "/vectors/photos", "dtype": "float32"},
}


@router.post(
    "",
    status_code=202,
    response_model=JobDocument,
    responses={
        202: {"headers": _LOCATION},
        200: {
            "model": JobDocument,
            "description": "The Idempotency-Key was used before: its job.",
            "headers": _LOCATION,
        },
        **WITH_BODY,
        **errors(403, 409),
        422: {
            "model": InvalidResponse | ErrorResponse,
            "description": "The body is not what is described here, or the Idempotency-Key was used with another body.",
        },
    },
    openapi_extra=documented(_JOB, _EXAMPLES),
)
async def submit(
    request: Request,
    idempotency_key: Annotated[str | None, Header(max_length=200, description="Equal keys make one job.")] = None,
) -> Response:
    """Submit a job, then poll for its result. Each accepted job ends with a result or with an error."""
    client = JobClient.of(request)
    sent, owner = await body.read(request, client.settings, _JOB)
    digest = _digest(sent)
    lane = Lane.BULK
    if not isinstance(sent, EmbedDatasetJob):
        request.state.items = sent.count
        lane = _lane(sent, client.settings)
    if idempotency_key:
        first = await client.store.execute(submissions.find_idempotent(owner, idempotency_key, digest))
        if first and (found := await _view(client, first)):
            return _accepted(request, *found, status=200)
    if isinstance(sent, EmbedDatasetJob):
        return await _answer(request, await datasets.submit(client, sent, owner, idempotency_key or "", digest))
    model = request.state.model = await client.registry.resolve(sent.clip_version_id, later=True)
    if lane is Lane.INTERACTIVE and not client.settings.interactive_jobs:
        raise BadInput("Field 'priority' may not be 'interactive' here (setting interactive_jobs).")

    fetched = await client.fetch(sent.items(Limits.of_job(client.settings)))
    job = Job(
        kind=sent.kind,
        model=model,
        total=len(fetched.inputs.items),
        lane=lane,
        owner=owner,
        on_error=sent.on_error,
        refused=fetched.refused,
        ttl=int(client.settings.result_ttl * 1000),
    )
    submission = submissions.Submission(
        job,
        fetched.inputs,
        client.settings.max_queued_items,
        deadline_in=sent.deadline_s or 0.0,
        listed=True,
        idempotency=idempotency_key or "",
        digest=digest,
        bytes=ByteLimits.of(client.settings),
    )
    return await _answer(request, await client.submit(submission))


async def _answer(request: Request, accepted: submissions.Accepted) -> Response:
    """The response to a submission that was accepted."""
    found = await _view(JobClient.of(request), accepted.job_id)
    if found is None:
        raise ops.unknown(accepted.job_id)
    return _accepted(request, *found, status=200 if accepted.duplicate else 202)


def _digest(sent: JobRequest) -> str:
    """What a repeated submission is recognised by, beside its Idempotency-Key."""
    values = sent.model_dump(warnings=False)
    if values.get("long_texts") == LongTexts.FAIL:  # a release before 0.2 does not know it: it must find the same job
        del values["long_texts"]
    try:
        content = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # halves of surrogate pairs, huge numbers
        content = json.dumps(values, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _lane(sent: ItemsJob, settings: Settings) -> Lane:
    """The lane that a job asks for. Raises :class:`RequestValidationError` with the allowed values."""
    if sent.priority in (Lane.INTERACTIVE, Lane.BACKGROUND):
        return Lane(sent.priority)
    allowed = "'background' or 'interactive'" if settings.interactive_jobs else "'background'"
    problem = {"loc": ("body", sent.task, "priority"), "msg": f"Input should be {allowed}", "type": "enum"}
    raise RequestValidationError([problem])


def _accepted(request: Request, view: ops.View, result: JobResult | None, status: int) -> Response:
    root = request.scope.get("root_path", "").rstrip("/")
    return respond(document(view, result), {"Location": f"{root}/jobs/{view.job.id}"}, status)


@router.get("", response_model=JobPage, responses=errors(401, 422, 503))
async def list_jobs(
    request: Request,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str, Query(max_length=80, pattern=r"^([0-9]+:[0-9a-f]+)?$")] = "",
) -> Response:
    """The caller's own jobs, newest first, without their results."""
    client = JobClient.of(request)
    jobs, following = await client.store.execute(
        ops.list_jobs(authenticate(request, client.settings), state, limit, cursor)
    )
    views = [ops.View(job, None, 0) for job in jobs]
    return respond({"jobs": [document(view) for view in views], "cursor": following or None})


@router.get("/{job_id}", response_model=JobDocument, responses=OF_A_JOB)
async def get(
    request: Request,
    job_id: str,
    wait: Annotated[float, Query(ge=0, description="Seconds to wait for the state to change.")] = 0.0,
) -> Response:
    """A job and its result. With `wait`, the response comes when the job's state changes."""
    client = JobClient.of(request)
    owner = authenticate(request, client.settings)
    view, result = await find(client, job_id, owner)
    if wait and not ended(view):
        view, result = await _changed(client, view, min(wait, client.settings.max_wait))
    return respond(document(view, result), about(view.job.model, result) if result else None)


@router.get(
    "/{job_id}/result",
    responses={
        200: {
            "content": {NPY: {"schema": {"type": "string", "format": "binary"}}},
            "description": "The result as the synchronous route returns it, or as an array.",
            "headers": ABOUT,
        },
        **OF_A_JOB,
        **errors(400, 409, _400="The vectors of a bulk run are in its output folder."),
    },
)
async def get_result(request: Request, job_id: str) -> Response:
    """Only the result: JSON, or with `Accept: application/x-npy` a NumPy array (items, dimension), float32."""
    client = JobClient.of(request)
    view, result = await find(client, job_id, authenticate(request, client.settings))
    if view.job.state is not State.SUCCEEDED:
        reason = f": {view.job.error['message']}" if view.job.error else ""
        raise JobFinished(f"The job has no result; it is {view.job.state}{reason}")
    if result is None:
        raise ops.unknown(job_id)
    headers = about(view.job.model, result) | {"Vary": "Accept"}
    accept = request.headers.get("accept", "")
    if (asked := weight(accept, NPY)) and asked >= weight(accept, "application/json"):
        out = io.BytesIO()
        np.save(out, array(view.job, result), allow_pickle=False)
        return Response(out.getvalue(), headers=headers, media_type=NPY)
    return respond(result_document(view.job, result), headers)


@router.get(
    "/{job_id}/events",
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events with `id`, `event` and `data`."},
        204: {"description": "The job has ended, and its last event was Last-Event-ID."},
        **OF_A_JOB,
    },
)
async def get_events(
    request: Request, job_id: str, last_event_id: Annotated[str | None, Header(max_length=200)] = None
) -> Response:
    """Server-Sent Events: the job's document after each change of its state or progress, until the job ends."""
    client = JobClient.of(request)
    view, _ = await find(client, job_id, authenticate(request, client.settings))
    return events.response(client, view, last_event_id, heartbeat=events.HEARTBEAT)


@router.delete(
    "/{job_id}",
    response_model=JobDocument,
    responses={**OF_A_JOB, **errors(409, _409="The job has ended already.")},
)
async def cancel(request: Request, job_id: str) -> Response:
    """Cancel a job: a queued job never starts, a running one stops before its next item."""
    client = JobClient.of(request)
    owner = authenticate(request, client.settings)
    state, ours = await client.store.execute(ops.cancel(job_id, owner))
    if not ours:
        raise JobFinished(f"The job has ended already: it is {state}.")
    view, _ = await find(client, job_id, owner)
    return respond(document(view))


async def find(client: JobClient, job_id: str, owner: str) -> tuple[ops.View, JobResult | None]:
    """A job and its result. Raises :class:`UnknownJob`, also for a job of another owner."""
    found = await _view(client, job_id)
    if found is None or found[0].job.owner != owner:
        raise ops.unknown(job_id)
    return found


async def _view(client: JobClient, job_id: str) -> tuple[ops.View, JobResult | None] | None:
    view, result = await client.store.execute(ops.outcome(job_id))
    return (view, result) if view else None


async def _changed(client: JobClient, before: ops.View, wait: float) -> tuple[ops.View, JobResult | None]:
    """The job as soon as its state is another than ``before``, or after ``wait`` seconds."""
    until = time.monotonic() + wait
    async with client.watch(before.job.id) as reply:
        while True:
            reply.clear()
            found = await _view(client, before.job.id)
            if found is None:
                raise ops.unknown(before.job.id)
            left = until - time.monotonic()
            if found[0].job.state is not before.job.state or left <= 0:
                return found
            await reply.wait(min(left, POLL_INTERVAL))
