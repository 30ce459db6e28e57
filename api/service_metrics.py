"""The metrics of the whole service: what the store knows and what the workers have written of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from clip_queue.api.job_client import JobClient
from clip_queue.shared.census import Census, census, memory
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import FINAL
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.shared.stages import BOUNDS, from_wire
from clip_queue.shared.workers import WorkerInfo

TOTALS = {
    "requeued": ("clip_queue_jobs_requeued", "Jobs whose worker was lost, put back in the queue."),
    "resent": (
        "clip_queue_jobs_resent",
        "Jobs sent to the queue again; of the interactive lane, because their message was lost.",
    ),
}


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
    yield from of_runs(found)
    lost = CounterMetricFamily("clip_queue_workers_lost", "Workers whose lease ran out.")
    lost.add_metric([], found.totals.get(("worker_lost", "", ""), 0))
    yield lost


def of_runs(found: Census) -> Iterator[Metric]:
    """Bulk runs: those under way by model, and the rows of all shards that have ended."""
    models = sorted({lane.model for lane in found.lanes} | {run.model for run in found.runs})
    rows = CounterMetricFamily("clip_queue_bulk_rows", "Rows of shards that have ended.", labels=("model", "outcome"))
    number = GaugeMetricFamily("clip_queue_bulk_runs", "Bulk runs under way.", labels=("model",))
    rate = GaugeMetricFamily("clip_queue_bulk_rows_per_second", "Rows a second of these runs.", labels=("model",))
    stalled = GaugeMetricFamily(
        "clip_queue_bulk_stalled_seconds", "How long the rows of one of them have not grown.", labels=("model",)
    )
    for model in models:
        runs = [run for run in found.runs if run.model == model]
        for outcome in ("done", "failed"):
            rows.add_metric((model, outcome), found.totals.get((f"rows_{outcome}", Lane.BULK, model), 0))
        number.add_metric((model,), len(runs))
        rate.add_metric((model,), sum(run.rate for run in runs))
        stalled.add_metric((model,), max((run.stalled for run in runs), default=0))
    yield from (number, rows, rate, stalled)


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
    gauges = {
        "memory_used": ("clip_queue_gpu_memory_used_bytes", "Memory in use on a worker's GPU, by whoever."),
        "memory_total": ("clip_queue_gpu_memory_bytes", "Memory of a worker's GPU."),
        "busy": ("clip_queue_gpu_busy_ratio", "Share of the time in which a worker's GPU computes."),
    }
    for field, (name, text) in gauges.items():
        gauge = GaugeMetricFamily(name, text, labels=("worker",))
        for worker in workers:
            if field in worker.gpu:
                gauge.add_metric((worker.id,), worker.gpu[field])
        yield gauge
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
