"""Embeddings on OpenAI's wire: what its client, and the many that speak like it, send and expect.

Vectors have length 1, as all of these clients expect; the `/clip` routes return the raw features.
"""

from __future__ import annotations

import base64
import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, TypeAdapter

from clip_queue.api import body, chunks
from clip_queue.api.clip import FETCH_SHARE, about, disconnected, matrix, respond, written
from clip_queue.api.embedding_inputs import EmbeddingsRequest, tokens
from clip_queue.api.error_responses import Failure
from clip_queue.api.job_client import JobClient
from clip_queue.api.keys import authenticate
from clip_queue.api.openapi import ABOUT, BODY_ERRORS, documented, errors
from clip_queue.api.requests import HEART
from clip_queue.shared.errors import BadInput
from clip_queue.shared.job import Inputs, Kind
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.vectors import Matrix, normalise

router = APIRouter(tags=["Embeddings"])

PATHS = ("/v1", "/embeddings", "/models")  # errors of these and of what is below them have OpenAI's form
STARTED = int(time.time())


class Embedding(BaseModel):
    object: str
    index: int
    embedding: list[float] | str = Field(description="Its length is 1. A string: base64 of float32, little-endian.")


class Usage(BaseModel):
    """About how many tokens: the words, digits and marks, and two a text. Only the worker knows the exact number."""

    prompt_tokens: int
    total_tokens: int
    num_images: int


class Embeddings(BaseModel):
    object: str
    id: str
    created: int
    model: str
    data: list[Embedding]
    usage: Usage


class OpenAIModel(BaseModel):
    id: str
    object: str
    created: int
    owned_by: str
    dimensions: int


class OpenAIModels(BaseModel):
    object: str
    data: list[OpenAIModel]


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorResponse(BaseModel):
    """``detail`` is the message once more, for the clients that look there; ``index`` is that of the bad input."""

    error: OpenAIError
    detail: str
    index: int | None = None


_REQUEST: TypeAdapter[EmbeddingsRequest] = TypeAdapter(EmbeddingsRequest)
_IMAGE = f"data:image/png;base64,{HEART}"


@router.post(
    "/v1/embeddings",
    response_model=Embeddings,
    responses={200: {"headers": ABOUT}, **errors(*BODY_ERRORS, 409, model=OpenAIErrorResponse)},
    openapi_extra=documented(
        EmbeddingsRequest,
        {
            "texts": {"input": ["red heart", "cat"]},
            "texts and an image": {"input": ["red heart", _IMAGE]},
            "objects": {"input": [{"text": "red heart"}, {"image": HEART}]},
            "a chat message": {"messages": [{"role": "user", "content": [{"type": "text", "text": "red heart"}]}]},
        },
    ),
)
@router.post("/embeddings", response_model=Embeddings, include_in_schema=False)
async def create_embeddings(request: Request) -> Response:
    """Embed texts and images. The vectors come in their order, with length 1."""
    began = time.monotonic()
    client = JobClient.of(request)
    sent, owner = await body.read(request, client.settings, _REQUEST)
    values = sent.values
    request.state.items = len(values)
    clock = time.monotonic()
    model = request.state.model = await client.registry.resolve(sent.model)
    check_dimensions(sent.dimensions, client.registry.models.get(model))
    fetched = await client.fetch(sent.items(values, client.settings), FETCH_SHARE * client.settings.request_timeout)
    result = await chunks.embed(client, kind_of(fetched.inputs), model, fetched, owner, disconnected(request), clock)
    rows = matrix(result)
    rows = rows if sent.normalized is False else normalise(rows)
    content = {
        "object": "list",
        "id": f"embd-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "data": await written(_data(rows, sent.base64)),
        "usage": _usage(fetched.inputs, client.registry.models.get(model)),
    }
    return respond(content, {**about(model, result), "X-Processing-Time": f"{time.monotonic() - began:.6f}"})


@router.get("/v1/models", response_model=OpenAIModels, responses=errors(401, model=OpenAIErrorResponse))
@router.get("/models", response_model=OpenAIModels, include_in_schema=False)
async def list_models(request: Request) -> Response:
    """The models that live workers serve."""
    client = JobClient.of(request)
    authenticate(request, client.settings)
    await client.registry.look_again()
    return respond({"object": "list", "data": [_model(model) for model in client.registry.models.values()]})


@router.get(
    "/v1/models/{name:path}",
    response_model=OpenAIModel,
    responses=errors(401, 404, 422, 503, model=OpenAIErrorResponse),
)
@router.get("/models/{name:path}", response_model=OpenAIModel, include_in_schema=False)
async def retrieve_model(request: Request, name: str) -> Response:
    """The model that a name or an alias stands for."""
    client = JobClient.of(request)
    authenticate(request, client.settings)
    model = await client.registry.resolve(name)
    return respond(_model(client.registry.models[model]))


def error(failure: Failure) -> tuple[int, dict[str, Any]]:
    """An error as OpenAI's clients read it: its status and its body."""
    status = 400 if failure.status == 422 else failure.status
    param = None if failure.index is None else f"input[{failure.index}]"
    message = f"{param}: {failure.message}" if param else failure.message
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    code = {"unauthorized": "invalid_api_key", "unknown_model": "model_not_found"}.get(failure.code, failure.code)
    param = "model" if failure.code == "unknown_model" else param
    content: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    if failure.index is not None:
        content["index"] = failure.index
    return status, {**content, "detail": message}


def check_dimensions(asked: int | None, model: ModelInfo | None) -> None:
    """Raise :class:`BadInput` if another number of dimensions is asked for than the model has."""
    if asked is not None and model is not None and asked != model.dimension:
        raise BadInput(
            f"Field 'dimensions' is {asked}, and model {model.name!r} makes vectors of {model.dimension}, which "
            "cannot be shortened without losing what they mean. Leave it out."
        )


def kind_of(inputs: Inputs) -> Kind:
    """The kind of a job of mixed items: a worker looks at each item, not at the kind."""
    return Kind.EMBED_IMAGE if any(isinstance(item, bytes) for item in inputs.items) else Kind.EMBED_TEXT


def _data(rows: Matrix, as_base64: bool) -> list[dict[str, Any]]:
    shown = [base64.b64encode(row.tobytes()).decode() for row in rows] if as_base64 else rows
    return [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(shown)]


def _usage(inputs: Inputs, model: ModelInfo | None) -> dict[str, int]:
    texts = [item for item in inputs.items if isinstance(item, str)]
    count = tokens(texts, model.context_length if model else None)
    return {"prompt_tokens": count, "total_tokens": count, "num_images": len(inputs.items) - len(texts)}


def _model(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": STARTED,
        "owned_by": "clip-queue",
        "dimensions": model.dimension,
    }
