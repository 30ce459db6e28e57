"""The ASGI application: ``uvicorn clip_queue.api.app:app``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.telemetry import TelemetryConfig

from clip_queue.api import (
    clip,
    compat,
    docs_page,
    error_responses,
    health,
    jobs,
    metrics,
    openai_embeddings,
    openapi,
    page,
    recent,
    search,
    search_processes,
    status,
    weaviate,
)
from clip_queue.api.application import Application
from clip_queue.api.body import BodyBudget
from clip_queue.api.head import Head
from clip_queue.api.job_client import JobClient
from clip_queue.api.plain_routes import PlainRoutes, plain
from clip_queue.api.request_log import RequestLog
from clip_queue.shared import garbage, json_log, startup, tracing
from clip_queue.shared.settings import Settings, get_settings
from clip_queue.version import __version__

DESCRIPTION = """
CLIP embeddings as a service. The `/clip` routes are those of Roboflow Inference: point its SDK here.
`/v1/embeddings` is OpenAI's, for texts and images; `/vectorize` that of Weaviate's `multi2vec-clip`.
`/jobs` accepts the same work without making the caller wait: submit a job, then poll for its result.

Every result names its model and the fingerprint of the weights in `X-Clip-Queue-Model` and
`X-Clip-Queue-Fingerprint`, and lists the seconds spent in each stage in `Server-Timing`.
"""


def create_app(
    settings: Settings | None = None,
    *,
    connect: Callable[[Settings], JobClient] = JobClient.connect,
    on_ready: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application.

    Args:
        settings: those of the environment by default.
        connect: makes the client of the store and the queue when the application starts.
        on_ready: called once it has started.
    """
    settings = settings or get_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = connect(settings)
        app.state.job_client = client
        app.state.readiness = health.Readiness(client)
        await client.check_server()
        client.start()
        app.state.recent = recent.Recent(client, app.state.metrics)
        app.state.recent.start()
        on_ready()
        try:
            yield
        finally:
            await app.state.searches.close()
            await app.state.recent.close()
            await client.close()
            await asyncio.to_thread(tracing.stop)

    app = Application(
        title="clip-queue",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its pages would load from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry=telemetry(),
    )
    app.state.body_budget = BodyBudget(settings.max_total_body_bytes)
    app.state.metrics = metrics.Metrics()
    app.state.searches = search_processes.Searches(settings)
    wires = (openai_embeddings, weaviate)
    error_responses.install(app, {path: wire.error for wire in wires for path in wire.PATHS})
    app.add_middleware(PlainRoutes, routes=plain(clip.router), handlers=app.exception_handlers)
    app.add_middleware(Head)
    app.add_middleware(RequestLog)
    app.add_middleware(metrics.Measured, metrics=app.state.metrics)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **cors(settings.cors_origins))
    for module in (clip, *wires, jobs, search, health, metrics, status, compat):
        app.include_router(module.router)
    docs_page.install(app)
    if settings.page:
        page.install(app)
    openapi.complete(app, settings)
    return app


def telemetry() -> TelemetryConfig:
    """What the framework does for traces. Where nobody wants them it is told so once: it would look into the
    environment at each request."""
    auto = os.environ.get("FASTAPI_OTEL_AUTO_CONFIGURE", "").lower() == "true"
    if auto or (tracing.installed() and not tracing.ours()):
        return {"operation_spans": False}
    return {"tracing": tracing.ours(), "metrics": False, "logs": False, "operation_spans": False}


def cors(origins: list[str]) -> dict[str, Any]:
    """What a page of one of ``origins`` may send and read. It sends no cookies: keys are all that is checked."""
    shown = ["X-Clip-Queue-Model", "X-Clip-Queue-Fingerprint", "X-Clip-Queue-Notice"]
    return {
        "allow_origins": origins,
        "allow_methods": ["GET", "HEAD", "POST", "DELETE"],
        "allow_headers": ["*"],
        "expose_headers": [*shown, "Server-Timing", "X-Processing-Time", "Location", "Retry-After", "X-Request-Id"],
        "max_age": 3600,
    }


_settings = startup.of_process("clip-queue API")
startup.warn_of_a_clients_key(_settings)
try:
    search_processes.check(_settings)
except startup.CannotWork as wrong:
    startup.stop("clip-queue API", wrong)
json_log.install(_settings)
json_log.set_level(_settings)
if os.environ.get("FASTAPI_OTEL_AUTO_CONFIGURE", "").lower() != "true":  # else the framework sends the spans itself
    tracing.install("clip-queue-api")
app = create_app(_settings, on_ready=garbage.freeze_and_look_rarely)
