"""``clip-queue status``: what a service does now, from its ``GET /readiness`` and ``GET /metrics``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from clip_queue.cli.service import Service, ServiceError

INTERVAL = 2.0  # seconds between looks with --watch
STALLED = 60.0  # seconds without a row from which it is worth a word
_P = "clip_queue_"


@dataclass(frozen=True)
class Lane:
    """A lane of a model. ``items``: of unfinished jobs; ``waiting``: jobs without a worker; ``oldest``: how long the
    oldest of these waits, seconds. Jobs that have ended are counted by state."""

    model: str
    lane: str
    items: int
    waiting: int
    oldest: float
    ended: dict[str, int]


@dataclass(frozen=True)
class Worker:
    """A live worker: what it has computed since its start, and seconds in forward passes. ``rate``: items a second
    while it computes; ``now``: items a second since the look before, where there was one."""

    id: str
    items: int
    batches: int
    busy: float
    rate: float
    now: float | None = None


@dataclass(frozen=True)
class Status:
    """``problem``: why the service is not ready, or None. ``workers_of``: live workers by model and device. ``limits``:
    items of a lane and bytes in the store from which new jobs get 429, and Redis' maxmemory; None: none, or not known.
    ``datasets``: by model that has some, bulk runs under way, their rows a second, and for how many seconds the rows of
    one of them have not grown; an API of release 0.1 does not tell them.
    """

    url: str
    problem: str | None
    store: bool
    workers_of: dict[str, dict[str, int]]
    lanes: list[Lane]
    workers: list[Worker]
    held_bytes: int
    redis_bytes: int | None
    limits: dict[str, int | None]
    workers_lost: int
    datasets: dict[str, dict[str, float]] = field(default_factory=dict)
    taken: float = field(default_factory=time.monotonic, compare=False)

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        del value["taken"]
        return value


def look(service: Service, before: Status | None = None) -> Status:
    """The status of a service now. Raises :class:`ServiceError`: it does not answer, or shows no metrics."""
    ready = service.get("/readiness", accept=(200, 503))
    said = service.document(ready)
    text = service.get("/metrics").text
    try:
        status = parse(text, service.url, said.get("message") if ready.status_code == 503 else None, before)
    except (ValueError, KeyError):
        raise service.stranger from None
    return status


def parse(text: str, url: str, problem: str | None, before: Status | None) -> Status:
    """A status from Prometheus's text."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name.removeprefix(_P), []).append((sample.labels, sample.value))

    def one(name: str) -> int | None:
        return next((int(value) for _, value in samples.get(name, ())), None)

    def by(name: str, *labels: str) -> dict[tuple[str, ...], float]:
        return {tuple(found[label] for label in labels): value for found, value in samples.get(name, ())}

    workers_of: dict[str, dict[str, int]] = {}
    for (model, device), number in by("workers", "model", "device").items():
        of_model = workers_of.setdefault(model, {})
        if number:
            of_model[device] = int(number)
    waiting, oldest = by("waiting_jobs", "model", "lane"), by("oldest_waiting_seconds", "model", "lane")
    ended: dict[tuple[str, ...], dict[str, int]] = {}
    for (model, lane, state), number in by("jobs_ended_total", "model", "lane", "state").items():
        ended.setdefault((model, lane), {})[state] = int(number)
    lanes = [
        Lane(key[0], key[1], int(items), int(waiting.get(key, 0)), oldest.get(key, 0.0), ended.get(key, {}))
        for key, items in by("items", "model", "lane").items()
    ]
    taken = time.monotonic()
    counted = [
        by(f"worker_{name}", "worker") for name in ("items_total", "batches_total", "busy_seconds_total", "rate")
    ]
    earlier = {worker.id: worker.items for worker in before.workers} if before else {}
    passed = taken - before.taken if before else 0.0
    workers = []
    for (name,), items in counted[0].items():
        batches, busy, rate = (of.get((name,), 0.0) for of in counted[1:])
        now = (items - earlier[name]) / passed if name in earlier and passed > 0 else None
        workers.append(Worker(name, int(items), int(batches), busy, rate, now))
    found = {
        name: by(f"bulk_{metric}", "model")
        for name, metric in (("runs", "runs"), ("rows_per_s", "rows_per_second"), ("stalled_s", "stalled_seconds"))
    }
    datasets = {
        model: {name: of.get((model,), 0.0) for name, of in found.items()}
        for (model,), number in found["runs"].items()
        if number
    }
    limits = {name: one(f"{name}_limit") for name in ("items", "held_bytes")}
    return Status(
        url,
        problem,
        bool(one("store_up")),
        workers_of,
        lanes,
        workers,
        one("held_bytes") or 0,
        one("redis_memory_bytes"),
        {**limits, "redis_bytes": one("redis_memory_limit_bytes") or None},
        one("workers_lost_total") or 0,
        datasets,
        taken,
    )


def watch(service: Service, interval: float = INTERVAL) -> Iterator[Status | ServiceError]:
    """Look again and again, without end. A service that is away is looked for again."""
    before: Status | None = None
    while True:
        try:
            before = look(service, before)
            yield before
        except ServiceError as error:
            yield error
        time.sleep(interval)


def show(console: Console, service: Service, *, as_json: bool, watching: bool) -> bool:
    """Print the status, once or until Ctrl-C. Returns whether the service was ready at last.

    Raises :class:`ServiceError`, but for a service that is away while it is watched.
    """
    if not watching:
        status = look(service)
        if as_json:
            print(json.dumps(status.to_json()))
        else:
            console.print(picture(status))
        return status.problem is None
    if as_json:
        for seen in watch(service):
            print(json.dumps({"error": str(seen)} if isinstance(seen, ServiceError) else seen.to_json()), flush=True)
    pictures = (Text(str(it), "red") if isinstance(it, ServiceError) else picture(it) for it in watch(service))
    if not console.is_terminal:  # there it would be drawn once, at the end
        for each in pictures:
            console.print(each)
            console.file.flush()
    with Live(console=console, auto_refresh=False) as live:
        for each in pictures:
            live.update(each, refresh=True)
    raise AssertionError  # watch() does not end


def picture(status: Status) -> RenderableType:
    state = "[green]ready[/]" if status.problem is None else f"[red]not ready[/]: {escape(status.problem)}"
    lines = [f"[bold]{escape(status.url)}[/] {state}"]
    if not status.store:
        return Text.from_markup(f"{lines[0]}\n[red]The job store does not answer: nothing else is known.[/]")
    held = _of(_size(status.held_bytes), _size(status.limits["held_bytes"]))
    redis = (
        "not told"
        if status.redis_bytes is None
        else _of(_size(status.redis_bytes), _size(status.limits["redis_bytes"]))
    )
    lines.append(f"jobs and results hold {held}; Redis' memory {redis}; workers lost so far: {status.workers_lost}")
    for model, of in status.datasets.items():
        still = f", no row for {of['stalled_s']:.0f} s" if of["stalled_s"] >= STALLED else ""
        lines.append(f"datasets of {escape(model)}: {of['runs']:.0f} under way, {of['rows_per_s']:.0f} rows/s{still}")
    return Group(*map(Text.from_markup, lines), _lanes(status), _workers(status))


def _lanes(status: Status) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, right in {
        "model": 0,
        "workers": 0,
        "lane": 0,
        "items": 1,
        "waiting jobs": 1,
        "oldest": 1,
        "ended": 0,
    }.items():
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for model, devices in status.workers_of.items():
        live = ", ".join(f"{count} on {device}" for device, count in devices.items()) or "[red]none[/]"
        first, workers = escape(model), live
        for lane in (lane for lane in status.lanes if lane.model == model):
            ended = ", ".join(f"{number:,} {state}" for state, number in lane.ended.items() if number)
            numbers = (
                _of(f"{lane.items:,}", _number(status.limits["items"])),
                f"{lane.waiting:,}",
                f"{lane.oldest:.1f} s",
            )
            table.add_row(first, workers, lane.lane, *numbers, ended)
            first = workers = ""
        if first:
            table.add_row(first, workers)
    return table


def _workers(status: Status) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("worker", "items", "batches", "mean batch", "busy", "items/s at work", "items/s now"):
        table.add_column(name, justify="left" if name == "worker" else "right", overflow="fold")
    for worker in status.workers:
        mean = f"{worker.items / worker.batches:.1f}" if worker.batches else "-"
        now = "-" if worker.now is None else f"{worker.now:,.1f}"
        counts = (f"{worker.items:,}", f"{worker.batches:,}", mean, f"{worker.busy:,.1f} s", f"{worker.rate:,.1f}", now)
        table.add_row(escape(worker.id), *counts)
    return table


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _size(size: int | None) -> str | None:
    return None if size is None else f"{size / 2**20:,.1f} MiB"


def _of(value: str | None, limit: str | None) -> str:
    return f"{value} of {limit}" if limit else str(value)
