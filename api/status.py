"""``GET /status``: what the service does now, in one document, for people and the page that they look at.

It says of the whole service what ``GET /metrics`` says, and nothing of anybody's jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from clip_queue.api import search
from clip_queue.api.clip import respond
from clip_queue.api.health import Readiness
from clip_queue.api.job_client import JobClient
from clip_queue.api.keys import authenticate
from clip_queue.api.openapi import errors
from clip_queue.api.recent import Recent, models_of
from clip_queue.shared.census import Census, census, memory
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.models import NOTICES
from clip_queue.shared.settings import Settings
from clip_queue.shared.workers import WorkerInfo
from clip_queue.version import __version__

router = APIRouter(tags=["Status"])

PATIENCE = 1.0  # seconds that it waits for the readiness, and for the searches: a probe or a process may take longer


class ServedModel(BaseModel):
    """``fingerprints``: those of the workers that serve it, one unless they differ; none: no worker serves it now."""

    name: str
    default: bool
    notice: str | None = None
    workers: int
    fingerprints: list[str]
    source: str | None = None
    dimension: int | None = None
    image_size: list[int] | None = Field(None, description="Height and width, pixels.")
    context_length: int | None = None
    precision: str | None = None
    logit_scale: float | None = Field(None, description="What cosines are multiplied with before a softmax.")


class WorkerStatus(BaseModel):
    """Counted since its start. ``busy_s``: seconds in forward passes; ``rate``: items a second while it computes."""

    id: str
    device: str
    models: list[str]
    items: int
    batches: int
    busy_s: float
    rate: float
    gpu: dict[str, float]


class LaneStatus(BaseModel):
    """``items`` of unfinished jobs; ``waiting``: jobs that no worker has taken, the oldest for ``oldest_s`` seconds."""

    model: str
    lane: str
    items: int
    limit: int
    waiting: int
    oldest_s: float


class StoreStatus(BaseModel):
    """Bytes; None: not known, or no limit."""

    held_bytes: int
    held_limit: int | None
    memory_bytes: int | None
    memory_limit: int | None


class BulkRun(BaseModel):
    """``stalled_s``: since when its rows have not grown, seconds."""

    model: str
    rows_per_s: float
    stalled_s: float


class WorkerSample(BaseModel):
    """``batch``: items in a forward pass, on average; None: there was none. ``busy``: share of the time in passes."""

    batch: float | None
    busy: float


class Sample(BaseModel):
    """The seconds since the sample before it. ``requests_per_s`` and ``failures`` by code: of POST. ``ended``: jobs by
    state. ``stages``: mean seconds of a request's job. ``lanes``: unfinished items; None, as ``held_bytes``, where the
    store was away. ``workers``: of the first 32."""

    at: float = Field(description="Unix time, seconds.")
    requests_per_s: float
    failures: dict[str, int]
    ended: dict[str, int]
    items_per_s: float
    batch: float | None
    busy: float | None
    workers: dict[str, WorkerSample]
    stages: dict[str, float]
    lanes: dict[str, int] | None
    held_bytes: int | None


class StatusDocument(BaseModel):
    """``problem``: why it is not ready; None: it is. ``store``: None while it does not answer;
    then there are no ``lanes`` either. ``limits``: what a request may hold."""

    version: str
    now: float = Field(description="Unix time, seconds.")
    ready: bool
    problem: str | None
    models: list[ServedModel]
    workers: list[WorkerStatus]
    workers_lost: int
    lanes: list[LaneStatus]
    store: StoreStatus | None
    runs: list[BulkRun]
    searches: list[search.SearchInfo]
    limits: dict[str, int]
    recent: list[Sample] = Field(description="With `since`: a sample every 5 s, at most ten minutes of them.")


@router.get("/status", response_model=StatusDocument, responses=errors(401, 422))
async def status(
    request: Request,
    since: Annotated[
        float | None, Query(description="Give the samples that are younger than this unix time; 0: all.")
    ] = None,
) -> Response:
    """What the service does now: models, workers, lanes against their limits, the store, and the last ten minutes."""
    client = JobClient.of(request)
    settings = client.settings
    authenticate(request, settings)
    readiness: Readiness = request.app.state.readiness
    problem = await _problem(readiness)
    found, used, most = None, None, None
    with suppress(Unavailable):
        found = await client.store.execute(census(models_of(client)))
        with suppress(Unavailable):  # its user may be forbidden to ask
            used, most = await client.store.execute(memory())
    if found is None and problem is None:
        problem = "The job store cannot be reached."
    ring: Recent = request.app.state.recent
    return respond(
        {
            "version": __version__,
            "now": time.time(),
            "ready": problem is None,
            "problem": problem,
            "models": models(client),
            "workers": [worker(each) for each in client.registry.workers],
            "workers_lost": found.totals.get(("worker_lost", "", ""), 0) if found else 0,
            "lanes": lanes(found, settings) if found else [],
            "store": found
            and {
                "held_bytes": found.held,
                "held_limit": found.limit,
                "memory_bytes": used,
                "memory_limit": most or None,
            },
            "runs": [
                {"model": run.model, "rows_per_s": run.rate, "stalled_s": run.stalled}
                for run in (found.runs if found else ())
            ],
            "searches": await search.summaries(request, patience=PATIENCE),
            "limits": limits(settings),
            "recent": [] if since is None else ring.since(since),
        },
        {"Cache-Control": "no-store"},
    )


async def _problem(readiness: Readiness) -> str | None:
    """Why it is not ready, or None. While a probe takes its time this is what the last one has found."""
    looking = asyncio.ensure_future(readiness.problem())
    done, _ = await asyncio.wait({looking}, timeout=PATIENCE)
    if done:
        return looking.result()
    looking.add_done_callback(lambda task: task.cancelled() or task.exception())
    return readiness.latest


def models(client: JobClient) -> list[dict[str, Any]]:
    """The models that are configured or served, the default first."""
    registry = client.registry
    names = [*registry.configured, *(name for name in registry.models if name not in registry.configured)]
    return [_model(name, registry.workers, default=name == registry.default) for name in names]


def _model(name: str, workers: Sequence[WorkerInfo], *, default: bool) -> dict[str, Any]:
    served = [model for worker in workers for model in worker.models if model.name == name]
    scales = [worker.logit_scales[name] for worker in workers if name in worker.logit_scales]
    fields = ("source", "dimension", "image_size", "context_length", "precision") if served else ()
    return {
        "name": name,
        "default": default,
        "notice": NOTICES.get(name),
        "workers": len(served),
        "fingerprints": _each(model.fingerprint for model in served),
        **{field: getattr(served[0], field) for field in fields},
        "logit_scale": scales[0] if scales else None,
    }


def _each(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def worker(info: WorkerInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "device": info.device,
        "models": [model.name for model in info.models],
        "items": info.items,
        "batches": info.batches,
        "busy_s": info.busy,
        "rate": info.rate,
        "gpu": info.gpu,
    }


def lanes(found: Census, settings: Settings) -> list[dict[str, Any]]:
    return [
        {
            "model": lane.model,
            "lane": lane.lane,
            "items": lane.items,
            "limit": settings.max_queued_items,
            "waiting": lane.waiting,
            "oldest_s": lane.oldest,
        }
        for lane in found.lanes
    ]


def limits(settings: Settings) -> dict[str, int]:
    """What a client must know to stay within them, by the names of the settings."""
    names = (
        "max_items",
        "max_texts",
        "max_job_items",
        "max_text_chars",
        "max_image_bytes",
        "max_image_pixels",
        "max_body_bytes",
    )
    return {name: getattr(settings, name) for name in names}
