"""The ASGI application: ``uvicorn clip_queue.api.app:app``."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from clip_queue.api import clip, compat, health, jobs, openapi
from clip_queue.api import error_responses as faults
from clip_queue.api.job_client import Door
from clip_queue.shared.broker import celery_app
from clip_queue.shared.settings import Settings, get_settings
from clip_queue.version import __version__

DESCRIPTION = """
CLIP embeddings as a service. The `/clip` routes are those of Roboflow Inference: point its SDK here.
`/jobs` takes the same work for later: submit, go away, poll.

Every answer names its model and the fingerprint of the weights in `X-Clip-Queue-Model` and
`X-Clip-Queue-Fingerprint`, and tells where the time went in `Server-Timing`.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or get_settings()
    logging.getLogger("uvicorn.access").addFilter(_without_keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        door = Door(settings, celery_app(settings, publisher=True))
        app.state.door = door
        app.state.readiness = health.Readiness(door)
        door.start()
        try:
            yield
        finally:
            await door.close()

    app = FastAPI(title="clip-queue", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    faults.install(app)
    for module in (clip, jobs, health, compat):
        app.include_router(module.router)
    openapi.complete(app)
    return app


def _without_keys(record: logging.LogRecord) -> bool:
    """Keys come in the query string too, and must not go into the access log."""
    if isinstance(record.args, tuple):
        record.args = tuple(_KEY.sub(r"\1…", a) if isinstance(a, str) else a for a in record.args)
    return True


_KEY = re.compile(r"((?:api_key|service_secret)=)[^&\s]*", re.IGNORECASE)

app = create_app()
