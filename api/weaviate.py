"""The wire of Weaviate's `multi2vec-clip` inference container: Weaviate vectorises with this service in its place.

Its client sends no key. Where keys are set, give it one in the address (`CLIP_INFERENCE_API=http://any:KEY@host:9001`),
or let `/vectorize` answer without (setting ``vectorize_without_key``).
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, StrictStr, TypeAdapter

from clip_queue.api import body, chunks
from clip_queue.api.clip import about, disconnected, matrix, respond, written
from clip_queue.api.error_responses import Failure
from clip_queue.api.images import parse_image
from clip_queue.api.items import Item, RequestItems, parse_each, parse_text
from clip_queue.api.job_client import JobClient
from clip_queue.api.openai_embeddings import kind_of
from clip_queue.api.openapi import ABOUT, BODY_ERRORS, documented, errors
from clip_queue.api.requests import HEART, check_count
from clip_queue.shared.job import LongTexts
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import normalise
from clip_queue.version import __version__

router = APIRouter(tags=["Weaviate"])

PATHS = ("/vectorize", "/.well-known", "/meta")  # errors of these have Weaviate's form
LIVE, READY = "/.well-known/live", "/.well-known/ready"

Strings = Annotated[list[StrictStr], Field(fail_fast=True)]


class VectorizeRequest(BaseModel):
    texts: Strings | None = None
    images: Strings | None = Field(None, description="Each in base64.")


class Vectors(BaseModel):
    """A vector of length 1 for each text and for each image, in their order."""

    textVectors: list[list[float]]  # noqa: N815
    imageVectors: list[list[float]]  # noqa: N815


class VectorizeError(BaseModel):
    error: str


_REQUEST: TypeAdapter[VectorizeRequest] = TypeAdapter(VectorizeRequest)


@router.get(LIVE, status_code=204)
async def live() -> Response:
    """This process answers requests."""
    return Response(status_code=204)


@router.get(
    READY,
    status_code=204,
    responses={503: {"model": VectorizeError, "description": "Which model has no live worker."}},
)
async def ready(request: Request) -> Response:
    """Live workers serve each configured model, as they said within the last seconds: Weaviate waits 500 ms, no longer.

    `/readiness` embeds something, which takes its time under load.
    """
    client = JobClient.of(request)
    registry = client.registry
    missing = [model for model in registry.configured if model not in registry.models]
    if missing or not client.alive:
        problem = registry.no_worker(missing[0]).message if missing else "a task of the API has ended"
        return respond({"error": problem}, {"Retry-After": "1"}, 503)
    return Response(status_code=204)


@router.get("/meta")
async def meta(request: Request) -> dict[str, Any]:
    """What this is, and which model it vectorises with."""
    registry = JobClient.of(request).registry
    model = registry.models.get(registry.default)
    return {
        "name": "clip-queue",
        "version": __version__,
        "model": registry.default,
        "dimension": model.dimension if model else None,
        "context_length": model.context_length if model else None,
    }


@router.post(
    "/vectorize",
    response_model=Vectors,
    responses={200: {"headers": ABOUT}, **errors(*BODY_ERRORS, 409, 422, model=VectorizeError)},
    openapi_extra=documented(VectorizeRequest, {"a text and an image": {"texts": ["red heart"], "images": [HEART]}}),
)
async def vectorize(request: Request) -> Response:
    """Embed texts and images with the default model. The vectors have length 1; a text that is too long is cut."""
    client = JobClient.of(request)
    settings = client.settings
    keys = settings.model_copy(update={"api_keys": []}) if settings.vectorize_without_key else settings
    sent, owner = await body.read(request, keys, _REQUEST)
    texts, images = sent.texts or [], sent.images or []
    request.state.items = len(texts) + len(images)
    if not texts and not images:
        return respond({"textVectors": [], "imageVectors": []})
    began = time.monotonic()
    model = request.state.model = await client.registry.resolve(None)
    inputs = await client.fetch(_items(texts, images, settings))
    result = await chunks.embed(client, kind_of(inputs.inputs), model, inputs, owner, disconnected(request), began)
    rows = normalise(matrix(result))
    content = {"textVectors": await written(rows[: len(texts)]), "imageVectors": await written(rows[len(texts) :])}
    return respond(content, about(model, result))


def error(failure: Failure) -> tuple[int, dict[str, Any]]:
    """An error as Weaviate shows it: its status and its body. An index counts the texts, then the images."""
    where = "" if failure.index is None else f"item {failure.index}: "
    return failure.status, {"error": where + failure.message}


def _items(texts: list[str], images: list[str], settings: Settings) -> RequestItems:
    check_count("texts and images", [*texts, *images], settings.max_inputs)

    def parse(value: object, index: int) -> Item:
        if index < len(texts):
            return parse_text(value, settings.max_text_chars, "texts", LongTexts.CUT)
        image = {"type": "base64", "value": value}
        return parse_image(image, settings.max_image_bytes, f"images[{index - len(texts)}]")

    return RequestItems(parse_each([*texts, *images], parse), long_texts=LongTexts.CUT)
