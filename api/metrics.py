"""``GET /metrics``, for Prometheus: what this process has answered, and what the store knows of the whole service.

The first are ``clip_queue_requests_total`` and ``clip_queue_request_duration_seconds``. With several uvicorn workers on
one port a scrape reaches any of them: set ``PROMETHEUS_MULTIPROC_DIR`` to an empty folder, and each answers for all.
The second are the same from every API process, so sum them over nothing: ``max without (instance) (…)``.

No label is a client's choice: routes are templates, models are those that are configured or served.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clip_queue.api.connections import TURNED_AWAY
from clip_queue.api.error_responses import METHODS
from clip_queue.api.job_client import JobClient
from clip_queue.api.keys import authenticate
from clip_queue.api.service_metrics import of_service
from clip_queue.shared.stages import BOUNDS

router = APIRouter(tags=["Health"])

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, which nobody asks for

SEVERAL = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own variable


class Metrics:
    """What one application counts. As ASGI middleware it is :class:`Measured`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(TURNED_AWAY)
        labels = ("method", "route", "status", "code")
        self._requests = Counter("clip_queue_requests", "Requests answered.", labels, registry=self.registry)
        self._durations = Histogram(
            "clip_queue_request_duration_seconds",
            "From a request's headers to the end of its response.",
            ("method", "route"),
            buckets=BOUNDS,
            registry=self.registry,
        )
        # What labels() finds more slowly. As many as there are combinations of labels, none of them a client's choice.
        self._children: dict[tuple[str, str, int, str], tuple[Counter, Histogram]] = {}

    def add(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path_format", "none")
        code = "" if status < 400 else scope.get("state", {}).get("code", "http")
        key = (method, route, status, code)
        if not (children := self._children.get(key)):
            request = self._requests.labels(method, route, str(status), code)
            children = self._children[key] = (request, self._durations.labels(method, route))
        children[0].inc()
        children[1].observe(seconds)

    def own(self) -> Iterable[Metric]:
        """What this process has counted, or all processes on its port."""
        registry = self.registry
        if SEVERAL in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return registry.collect()


class Measured:
    """ASGI middleware that counts requests in the application's ``state.metrics``."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._metrics.add(scope, status, time.monotonic() - began)


class Families(Collector):
    """Metrics that are made already, for an encoder."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus's text format, or OpenMetrics."}},
)
async def metrics(request: Request) -> Response:
    """Figures of this process and of the whole service, for Prometheus."""
    client = JobClient.of(request)
    settings = client.settings
    if settings.metrics == "off":
        raise HTTPException(404, "Metrics are off (setting metrics).")
    if settings.metrics == "key":
        authenticate(request, settings)
    counted: Metrics = request.app.state.metrics
    families = [*counted.own(), *await of_service(client)]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families(families))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=None, headers={"Content-Type": content_type})
