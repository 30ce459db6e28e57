"""The other routes of Roboflow Inference that its clients call."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from clip_queue.api import page
from clip_queue.api.clip import respond
from clip_queue.api.job_client import JobClient
from clip_queue.shared.models import PREFIX
from clip_queue.version import __version__

router = APIRouter(tags=["Server"])

SERVER = str(uuid.uuid4())  # a name of this process


class Server(BaseModel):
    name: str
    version: str
    docs: str | None = None
    uuid: str | None = None


class Model(BaseModel):
    model_id: str = Field(description="`clip/` and the name, as Roboflow Inference has it.")
    name: str
    task_type: str
    source: str
    fingerprint: str
    dimension: int
    context_length: int
    image_size: list[int]
    precision: str


class Models(BaseModel):
    models: list[Model]


@router.get(
    "/",
    response_model=Server,
    responses={200: {"content": {"text/html": {}}, "description": "What this is; for browsers, the page."}},
)
async def root(request: Request) -> Response:
    """What this is. Who accepts `text/html`, as browsers do, gets the page, if the setting `page` is on."""
    vary = {"Vary": "Accept"}
    if found := page.wanted(request):
        return found.answer(request, vary)
    return respond({"name": "clip-queue", "version": __version__, "docs": "/docs"}, vary)


@router.get("/info", response_model=Server)
async def info() -> Response:
    return respond({"name": "clip-queue", "version": __version__, "uuid": SERVER})


@router.get("/model/registry", response_model=Models)
async def registry(request: Request) -> Response:
    """The models that live workers serve."""
    return respond(await _served(request))


@router.post("/model/add", response_model=Models)
@router.post("/model/remove", response_model=Models)
@router.post("/model/clear", response_model=Models)
async def change_models(request: Request) -> Response:
    """Accepted without effect: a worker loads its models when it starts, and keeps them. The answer lists them."""
    return respond(await _served(request))


async def _served(request: Request) -> dict[str, Any]:
    client = JobClient.of(request)
    await client.registry.look_again()
    models = [
        {
            "model_id": PREFIX + model.name,
            "name": model.name,
            "task_type": "embedding",
            "source": model.source,
            "fingerprint": model.fingerprint,
            "dimension": model.dimension,
            "context_length": model.context_length,
            "image_size": model.image_size,
            "precision": model.precision,
        }
        for model in client.registry.models.values()
    ]
    return {"models": models}
