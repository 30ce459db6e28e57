"""The CLIP routes, with the wire format of Roboflow Inference: submit a job, wait for it, return its result."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, TypeAdapter

from clip_queue.api import body, chunks
from clip_queue.api.job_client import JobClient
from clip_queue.api.openapi import ABOUT, WITH_BODY, documented, errors
from clip_queue.api.requests import HEART, ClipRequest, Compare, EmbedImage, EmbedText, Limits
from clip_queue.shared.job import JobResult, Kind
from clip_queue.shared.models import NOTICES
from clip_queue.shared.vectors import Matrix

router = APIRouter(prefix="/clip", tags=["CLIP"])


class ItemError(BaseModel):
    code: str
    message: str
    index: int


class EmbedResponse(BaseModel):
    """``embeddings`` has a row for each item, in order: the features as the model computes them, not normalised.

    With `"on_error": "skip"` the row of a bad item is null, and ``errors`` has its index and the reason.
    """

    inference_id: str | None = None
    frame_id: str | None = None
    time: float
    embeddings: list[list[float] | None]
    errors: list[ItemError] | None = None


class CompareResponse(BaseModel):
    """``similarity`` has the subject's cosine with each prompt. It is an object if the prompts have names."""

    inference_id: str | None = None
    frame_id: str | None = None
    time: float
    similarity: list[float] | dict[str, float]
    parent_id: str | None = None


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"headers": ABOUT},
    **WITH_BODY,
    **errors(409, _409="The job was cancelled."),
}

_EMBED_IMAGE: TypeAdapter[EmbedImage] = TypeAdapter(EmbedImage)
_EMBED_TEXT: TypeAdapter[EmbedText] = TypeAdapter(EmbedText)
_COMPARE: TypeAdapter[Compare] = TypeAdapter(Compare)

FETCH_SHARE = 0.75  # of a request's time that fetching its images may take: the rest is for computing
PIECE = 512  # rows that are written as JSON at once

_HEART = {"type": "base64", "value": HEART}


@router.post(
    "/embed_image",
    response_model=EmbedResponse,
    responses=_RESPONSES,
    openapi_extra=documented(EmbedImage, {"one image": {"image": _HEART}, "several": {"image": [_HEART, _HEART]}}),
)
async def embed_image(request: Request) -> Response:
    """Embed one image, or several in one request."""
    began = time.monotonic()
    return await embed(request, _EMBED_IMAGE, began)


@router.post(
    "/embed_text",
    response_model=EmbedResponse,
    responses=_RESPONSES,
    openapi_extra=documented(EmbedText, {"one text": {"text": "red heart"}, "several": {"text": ["cat", "dog face"]}}),
)
async def embed_text(request: Request) -> Response:
    """Embed one text, or several in one request."""
    began = time.monotonic()
    return await embed(request, _EMBED_TEXT, began)


@router.post(
    "/compare",
    response_model=CompareResponse,
    responses=_RESPONSES,
    openapi_extra=documented(
        Compare,
        {
            "image with texts": {"subject": _HEART, "prompt": ["red heart", "cat", "pizza"]},
            "named prompts": {"subject": _HEART, "prompt": {"love": "red heart", "food": "pizza"}},
            "text with images": {
                "subject": "red heart",
                "subject_type": "text",
                "prompt": [_HEART],
                "prompt_type": "image",
            },
        },
    ),
)
async def compare(request: Request) -> Response:
    """Compare an image or a text with several images or texts: the cosines of their features."""
    began = time.monotonic()
    _, result, headers = await ask(request, _COMPARE)
    return _respond({"similarity": similarity(result), "parent_id": None}, headers, began)


async def embed(request: Request, adapter: TypeAdapter[Any], began: float) -> Response:
    """The response of both embedding routes."""
    sent, result, headers = await ask(request, adapter)
    content = embeddings(result, skip=sent.skip)
    return _respond({**content, "embeddings": await written(content["embeddings"])}, headers, began)


def _respond(content: dict[str, Any], headers: dict[str, str], began: float) -> Response:
    """The response to a request that ``began`` at this time by ``time.monotonic``."""
    seconds = time.monotonic() - began
    about_it = {"inference_id": str(uuid.uuid4()), "frame_id": None, "time": seconds}
    return respond({**about_it, **content}, {**headers, "X-Processing-Time": f"{seconds:.6f}"})


async def ask(request: Request, adapter: TypeAdapter[Any]) -> tuple[ClipRequest, JobResult, dict[str, str]]:
    """A request, its result, and the headers of its response."""
    client = JobClient.of(request)
    sent: ClipRequest
    sent, owner = await body.read(request, client.settings, adapter)
    request.state.items = sent.count
    began = time.monotonic()  # from here on the deadline counts, fetching included
    model = request.state.model = await client.registry.resolve(sent.clip_version_id)  # before any image is fetched
    items = sent.items(Limits.of_request(client.settings))
    fetched = await client.fetch(items, FETCH_SHARE * client.settings.request_timeout)

    left = disconnected(request)
    if sent.kind is Kind.COMPARE:
        result = await client.call(sent.kind, model, fetched, owner, left, began=began, on_error=sent.on_error)
    else:
        result = await chunks.embed(client, sent.kind, model, fetched, owner, left, began, sent.on_error)
    return sent, result, about(model, result)


def disconnected(request: Request) -> Callable[[], Awaitable[None]]:
    """What returns when the caller has closed the connection. The body of the request has been read."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return wait


def about(model: str, result: JobResult) -> dict[str, str]:
    """Headers with the model of a result, the fingerprint of its weights, and the time of each stage."""
    headers = {
        "X-Clip-Queue-Model": model,
        "X-Clip-Queue-Fingerprint": result.fingerprint,
        "Server-Timing": ", ".join(f"{stage};dur={1000 * s:.2f}" for stage, s in result.timings.items()),
    }
    if notice := NOTICES.get(model):
        headers["X-Clip-Queue-Notice"] = notice
    return headers


def matrix(result: JobResult) -> Matrix:
    """The features (n, dimension) of a result, float32."""
    return np.frombuffer(result.vectors, dtype="<f4").reshape(-1, max(result.dimension, 1))


def similarity(result: JobResult) -> list[float] | dict[str, float]:
    values = result.similarity or []
    return dict(zip(result.names, values, strict=True)) if result.names else values


def embeddings(result: JobResult, *, skip: bool) -> dict[str, Any]:
    """The rows of a result. With ``skip``, the row of a failed item is null, and ``errors`` has the reasons."""
    rows = matrix(result)
    if not skip:
        return {"embeddings": rows}
    failed = {error["index"] for error in result.errors}
    good = iter(rows)
    places = range(len(rows) + len(failed))
    return {"embeddings": [None if i in failed else next(good) for i in places], "errors": result.errors}


async def written(rows: Matrix | Sequence[Any]) -> orjson.Fragment:
    """Rows as JSON. Other requests are answered between one piece of them and the next."""
    pieces = []
    for start in range(0, len(rows), PIECE):
        pieces.append(orjson.dumps(rows[start : start + PIECE], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
        # Also after the last one: the answers of a message go out together, and so do the requests that follow them.
        await asyncio.sleep(0)
    return orjson.Fragment(b"[%s]" % b",".join(pieces))


def respond(content: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """A JSON response. orjson writes NumPy arrays: 1000 × 512 numbers take 12 ms, with jsonable_encoder 662 ms."""
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(data, status, headers, media_type="application/json")
