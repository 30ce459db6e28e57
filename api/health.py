"""Health. Ready means that a worker has just embedded something, not only that a process exists."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import secrets
import time
from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from clip_queue.api.clip import respond
from clip_queue.api.items import FetchedItems
from clip_queue.api.job_client import JobClient
from clip_queue.api.proofs import Modality
from clip_queue.api.requests import HEART
from clip_queue.shared.errors import ClipError, MemoryFull, QueueFull
from clip_queue.shared.job import Inputs, Kind

log = logging.getLogger(__name__)

router = APIRouter(tags=["Health"])

IMAGE = base64.b64decode(HEART)
CACHE_TTL = 3.0  # seconds that a check is valid
PROBE_TIMEOUT = 4.0  # seconds that a probe may take
PROBES: dict[Modality, Callable[[], tuple[Kind, bytes | str]]] = {
    Modality.IMAGE: lambda: (Kind.EMBED_IMAGE, IMAGE),
    Modality.TEXT: lambda: (Kind.EMBED_TEXT, f"ready {secrets.token_hex(4)}"),
}


class Readiness:
    """Whether each configured model has computed images and texts in the last seconds, for a request or for a probe.

    Each of the two is proven by itself: texts that flow say nothing of images. A probe is a job like any other, of an
    image or of a text that nobody has sent before. So it tests decoding or the tokenizer, and its part of the model,
    and no cache can have its result.

    Args:
        cache_ttl: seconds that a check is valid.
        probe_timeout: seconds that a probe may take.
    """

    def __init__(
        self, client: JobClient, *, cache_ttl: float = CACHE_TTL, probe_timeout: float = PROBE_TIMEOUT
    ) -> None:
        self._client = client
        self._cache_ttl = cache_ttl
        self._probe_timeout = probe_timeout
        self._lock = asyncio.Lock()
        self._checked = -math.inf
        self._problem: str | None = "not checked yet"

    @property
    def latest(self) -> str | None:
        """What :meth:`problem` has said last."""
        return self._problem

    async def problem(self) -> str | None:
        """The reason why the service is not ready, or None if it is. Concurrent callers share one check."""
        async with self._lock:
            if time.monotonic() - self._checked > self._cache_ttl:
                before, self._problem = self._problem, await self._check()
                self._checked = time.monotonic()
                if self._problem != before:
                    log.warning("not ready: %s", self._problem) if self._problem else log.info("ready")
            return self._problem

    async def _check(self) -> str | None:
        if not self._client.alive:
            return "a task of the API has ended"
        try:
            await self._client.registry.refresh()
            for model in self._client.registry.configured:
                if model not in self._client.registry.models:
                    raise self._client.registry.no_worker(model)
        except ClipError as error:
            return error.message
        since = time.monotonic() - self._cache_ttl
        parts = [(model, modality) for model in self._client.registry.configured for modality in Modality]
        idle = [part for part in parts if self._client.proofs.latest(*part) < since]
        problems = await asyncio.gather(*(self._probe(*part) for part in idle))
        return " ".join(dict.fromkeys(filter(None, problems))) or None

    async def _probe(self, model: str, modality: Modality) -> str | None:
        """The reason why a model does not compute images, or texts; None if it has just done so."""
        kind, item = PROBES[modality]()
        try:
            await self._client.call(kind, model, FetchedItems(Inputs([item])), "probe", timeout=self._probe_timeout)
        except (QueueFull, MemoryFull) as error:  # that says nothing of the model
            return f"New requests are refused ({error.code}): {error.message}"
        except ClipError as error:
            return f"Model {model!r} does not compute {modality}s: {error.message}"
        return None


class Health(BaseModel):
    status: str


class NotReady(Health):
    message: str


@router.get("/healthz", response_model=Health)
async def healthz() -> Response:
    """This process answers requests."""
    return respond({"status": "healthy"})


@router.get(
    "/readiness",
    response_model=Health,
    responses={503: {"model": NotReady, "description": "The reason why it is not ready."}},
)
async def readiness(request: Request) -> Response:
    """A worker has embedded something in the last seconds. If not: 503 and the reason."""
    state: Readiness = request.app.state.readiness
    if problem := await state.problem():
        request.state.code = "not_ready"
        return respond({"status": "not ready", "message": problem}, {"Retry-After": "2"}, 503)
    return respond({"status": "ready"})
