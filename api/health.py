"""Health that tells the truth: ready means that a worker embedded something just now, not that a process exists."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from clip_queue.api.clip import respond
from clip_queue.api.job_client import Door
from clip_queue.api.requests import HEART
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Inputs, Kind

router = APIRouter(tags=["Health"])

PICTURE = base64.b64decode(HEART)
FRESH = 3.0  # seconds that a proof holds
PATIENCE = 4.0  # seconds that a proof may take


class Readiness:
    """Each configured model has computed something within the last seconds: for a request, or else for a probe.

    The probe compares a picture with a text that nobody has seen before, through the queue: decoding and both towers
    take part, and no cache answers.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._lock = asyncio.Lock()
        self._checked = 0.0
        self._problem: str | None = "not checked yet"

    async def problem(self) -> str | None:
        """What keeps the service from being ready; None if nothing does. Callers share one proof."""
        async with self._lock:
            if time.monotonic() - self._checked > FRESH:
                self._problem = await self._prove()
                self._checked = time.monotonic()
            return self._problem

    async def _prove(self) -> str | None:
        if not (self._door.replies.alive and self._door.registry.alive and self._door.reconciler.alive):
            return "a task of the API has ended"
        try:
            await self._door.registry.refresh()
            quiet = [m for m in self._door.registry.configured if time.monotonic() - self._door.computed(m) > FRESH]
            await asyncio.gather(*(self._probe(model) for model in quiet))
        except ClipError as error:
            return error.message
        return None

    async def _probe(self, model: str) -> None:
        inputs = Inputs([PICTURE, f"ready {secrets.token_hex(4)}"])
        await self._door.call(Kind.COMPARE, model, inputs, owner="probe", timeout=PATIENCE)


@router.get("/healthz")
async def healthz() -> Response:
    """This process answers."""
    return respond({"status": "healthy"})


@router.get("/readiness")
async def readiness(request: Request) -> Response:
    """A worker embeds, tried end to end within the last seconds; else 503 and why."""
    state: Readiness = request.app.state.readiness
    if problem := await state.problem():
        return respond({"status": "not ready", "message": problem}, {"Retry-After": "2"}, 503)
    return respond({"status": "ready"})
