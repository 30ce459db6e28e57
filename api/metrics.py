"""``GET /metrics``, for Prometheus: what this process has answered, and what the store knows of the whole service.

The first are ``clip_queue_requests_total`` and ``clip_queue_request_duration_seconds``. With several uvicorn workers on
one port a scrape reaches any of them: set ``PROMETHEUS_MULTIPROC_DIR`` to an empty folder, and each answers for all.
The second are the same from every API process, so sum them over nothing: ``max without (instance) (…)``.

No label is a client's choice: routes are templates, models are those that are configured or served.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clip_queue.api.error_responses import METHODS
from clip_queue.api.job_client import JobClient
from clip_queue.api.keys import authenticate
from clip_queue.shared.census import Census, census, memory
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import FINAL
from clip_queue.shared.settings import Settings
from clip_queue.shared.stages import BOUNDS, from_wire
from clip_queue.shared.workers import WorkerInfo

router = APIRouter(tags=["Health"])

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, which nobody asks for

SEVERAL = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own variable
TOTALS = {
    "requeued": ("clip_queue_jobs_requeued", "Jobs whose worker was lost, put back in the queue."),
    "resent": (
        "clip_queue_jobs_resent",
        "Jobs sent to the queue again; of the interactive lane, because their message was lost.",
    ),
}


class Metrics:
    """What one application counts. As ASGI middleware it is :class:`Measured`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        route = getattr(scope.get("route"), "path", "none")
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


async def of_service(client: JobClient) -> list[Metric]:
    """What the store and the workers have written. Without the store: that it is away, and nothing else."""
    up = GaugeMetricFamily("clip_queue_store_up", "Whether this process reaches the job store.")
    models = sorted({*client.registry.configured, *client.registry.models})
    try:
        found = await client.store.execute(census(models))
    except Unavailable:
        up.add_metric([], 0)
        return [up]
    up.add_metric([], 1)
    families = [up, *of_store(found, client.settings)]
    with suppress(Unavailable):
        used, most = await client.store.execute(memory())
        families.append(_gauge("clip_queue_redis_memory_bytes", "Memory that Redis uses.", used))
        families.append(_gauge("clip_queue_redis_memory_limit_bytes", "Its maxmemory; 0: none.", most))
    return [*families, *of_workers(client.registry.workers, client.registry.configured)]


def of_store(found: Census, settings: Settings) -> Iterator[Metric]:
    items = GaugeMetricFamily("clip_queue_items", "Items of unfinished jobs.", labels=("model", "lane"))
    waiting = GaugeMetricFamily("clip_queue_waiting_jobs", "Jobs that wait for a worker.", labels=("model", "lane"))
    oldest = GaugeMetricFamily(
        "clip_queue_oldest_waiting_seconds", "How long the oldest of them has waited.", labels=("model", "lane")
    )
    for lane in found.lanes:
        items.add_metric((lane.model, lane.lane), lane.items)
        waiting.add_metric((lane.model, lane.lane), lane.waiting)
        oldest.add_metric((lane.model, lane.lane), lane.oldest)
    yield from (items, waiting, oldest)
    yield _gauge("clip_queue_items_limit", "Items of a lane from which new jobs get 429.", settings.max_queued_items)
    jobs = GaugeMetricFamily("clip_queue_unfinished_jobs", "Jobs that have not ended.", labels=("model",))
    for model, number in found.unfinished.items():
        jobs.add_metric((model,), number)
    yield jobs
    yield _gauge("clip_queue_held_bytes", "Bytes that jobs and results hold in the store.", found.held)
    if found.limit is not None:
        yield _gauge("clip_queue_held_bytes_limit", "Bytes from which new jobs get 429.", found.limit)
    ended = CounterMetricFamily(
        "clip_queue_jobs_ended", "Jobs that have ended, by state.", labels=("model", "lane", "state")
    )
    for lane in found.lanes:
        for state in sorted(FINAL):
            ended.add_metric((lane.model, lane.lane, state), found.totals.get((state, lane.lane, lane.model), 0))
    yield ended
    for event, (name, text) in TOTALS.items():
        family = CounterMetricFamily(name, text, labels=("model", "lane"))
        for lane in found.lanes:
            family.add_metric((lane.model, lane.lane), found.totals.get((event, lane.lane, lane.model), 0))
        yield family
    lost = CounterMetricFamily("clip_queue_workers_lost", "Workers whose lease ran out.")
    lost.add_metric([], found.totals.get(("worker_lost", "", ""), 0))
    yield lost


def of_workers(workers: Sequence[WorkerInfo], configured: Iterable[str]) -> Iterator[Metric]:
    live = GaugeMetricFamily("clip_queue_workers", "Live workers that serve a model.", labels=("model", "device"))
    number: dict[tuple[str, str], int] = {}
    for model in configured:
        if not any(model == served.name for worker in workers for served in worker.models):
            number[model, ""] = 0
    for worker in workers:
        for served in worker.models:
            number[served.name, worker.device] = number.get((served.name, worker.device), 0) + 1
    for key, count in number.items():
        live.add_metric(key, count)
    yield live
    counters = {
        "items": ("clip_queue_worker_items", "Items that a worker has computed."),
        "batches": ("clip_queue_worker_batches", "Forward passes of a worker."),
        "busy": ("clip_queue_worker_busy_seconds", "Time that a worker has spent in forward passes."),
        "cache_hits": ("clip_queue_worker_text_cache_hits", "Texts that a worker's cache had."),
        "cache_misses": ("clip_queue_worker_text_cache_misses", "Texts that it had not."),
    }
    for field, (name, text) in counters.items():
        counter = CounterMetricFamily(name, text, labels=("worker",))
        for worker in workers:
            counter.add_metric((worker.id,), getattr(worker, field))
        yield counter
    rate = GaugeMetricFamily("clip_queue_worker_rate", "Items a second while it computes.", labels=("worker",))
    for worker in workers:
        rate.add_metric((worker.id,), worker.rate)
    yield rate
    yield stages(workers)


def stages(workers: Sequence[WorkerInfo]) -> Metric:
    """The histograms of all workers. Each worker has its own, or a restart would look like a fall."""
    family = HistogramMetricFamily(
        "clip_queue_stage_duration_seconds",
        "Time of a job's stages: of its last item, in the queue and in the worker.",
        labels=("worker", "model", "lane", "kind", "stage"),
    )
    for worker in workers:
        for model, lane, kind, stage, histogram in from_wire(worker.stages):
            buckets, so_far = [], 0
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), histogram.counts, strict=True):
                so_far += count
                buckets.append((bound, so_far))
            family.add_metric((worker.id, model, lane, kind, stage), buckets, histogram.total)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family
