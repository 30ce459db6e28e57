"""Embed a dataset: plan it, have its shards done, report. Killed at any moment, the same call goes on."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from clip_queue.api.keys import tenant
from clip_queue.bulk.output.layout import Output, Plan
from clip_queue.bulk.output.shard_job import OutputError, explained
from clip_queue.bulk.run.planner import Asked, Draft, as_asked, options
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.resume import check_model, check_same, markers
from clip_queue.bulk.run.runner import Runner
from clip_queue.bulk.run.workers import find_workers, locked, served, the_model
from clip_queue.shared.errors import ClipError
from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings


def nothing(*_: object) -> None:
    """Where nobody looks."""


def embed(
    source: str,
    output: str,
    *,
    format: str | None = None,
    model: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    images: bool | None = None,
    texts: bool | None = None,
    shard_size: int | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
    normalize: bool | None = None,
    workers: int | None = None,
    redis_url: str | None = None,
    settings: Settings | None = None,
    show: Callable[[Progress], None] = nothing,
    say: Callable[[str], None] = nothing,
    told_to_stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Embed every row of ``source`` into ``output``; called again after whatever stopped it, it goes on.

    Args:
        source: a folder of images, tars, parquet, ``.txt``, ``.csv`` or ``.jsonl``: a path, a glob, a brace expression,
            or a URL that fsspec opens.
        output: a folder, likewise (:mod:`clip_queue.bulk.output.layout`).
        format: one of :class:`clip_queue.sources.source.Format`; None: from what is there.
        model: a served name, or ``NAME=SOURCE``; None: the first of the setting ``models``.
        image_column, text_column: of a table; None: from the columns' names.
        images, texts: whether to embed them; None: if there are any.
        shard_size: rows an output file; None: 10,000, or less where that would make fewer than 16 files. A tar is a
            shard of its own.
        batch_size: rows a forward pass; None: 256 on a GPU, 32 on a CPU, 8 on one whose workers may have requests.
        dtype: of the stored vectors, ``float16`` (the default) or ``float32``.
        normalize: scale vectors to length 1 (the default).
        workers: worker processes to start; None: one a GPU, or one a core and at most four. Not with ``redis_url``.
        redis_url: a Redis whose workers do the work; None: start what is needed here, and stop it afterwards.
        show: gets the :class:`~bulk.progress.Progress` several times a second.
        say: gets lines about what happens.
        told_to_stop: asked several times a second; True gives back what runs and ends the call.

    Raises:
        ClipError: the run could not begin or go on; the message says why and what to do.
        StackError: what is needed here could not be started.
    """
    settings = settings or Settings()
    where = Output(output)
    spec = parse_model(model or settings.models[0])
    asked = Asked(
        as_asked(source, format, image_column, text_column, images, texts), shard_size, dtype, normalize, batch_size
    )
    if asked.source.url == where.url:
        raise OutputError("source and output are the same: choose another output")
    with locked(where):
        loaded = where.load()
        if loaded:
            check_same(loaded[0], asked.source, options(asked, loaded[0].options), spec.name)
            if loaded[1] and (report := reported(where, loaded[0], list(markers(where, loaded[0])))).finished:
                where.tidy()
                return report
        draft = None if loaded else Draft.make(where, asked, say, told_to_stop)
        settings = settings.model_copy(update={"models": [model or settings.models[0]]})
        with served(settings, workers, redis_url, say, told_to_stop) as (settings, alive_check):
            alive = find_workers(settings, spec.name, told_to_stop)
            info = the_model(alive, spec.name)
            if loaded:
                plan = loaded[0]
                check_model(plan, info.fingerprint)
            else:
                assert draft is not None
                plan = draft.plan(info, alive[0].device, beside=redis_url is not None)
                where.save(plan, versions())
            return run(settings, where, plan, show, told_to_stop, alive_check)


def run(
    settings: Settings,
    where: Output,
    plan: Plan,
    show: Callable[[Progress], None],
    told_to_stop: Callable[[], bool],
    check: Callable[[], None],
) -> Report:
    """Have a plan's shards done by the workers of ``settings``' Redis."""
    began = time.monotonic()
    keys = [key.get_secret_value() for key in settings.api_keys]
    owner = tenant(keys[0] if keys else None)

    def stop() -> bool:
        check()
        return told_to_stop()

    runner = Runner(settings, where, plan, owner=owner, told_to_stop=stop, show=show)
    error: ClipError | None = None
    try:
        outcome = runner.run()
    except ClipError as failure:
        error = failure
        raise
    except OSError as failure:  # else the run's job would end as if all were well
        error = OutputError(explained(failure))
        raise error from failure
    finally:
        runner.close(error)
    found = list(markers(where, plan))
    report = reported(where, plan, found)
    report.resumed = runner.progress.resumed
    report.waited = runner.waited
    report.seconds = time.monotonic() - began
    report.lost, report.stopped = outcome.lost, outcome.stopped
    if report.finished:
        shards = [{k: m[k] for k in ("shard", "rows", "failed", "files", "seconds")} for m in found]
        where.save(plan, versions(), {**report.to_json(), "shards": shards})
        where.tidy()
    return report


def reported(where: Output, plan: Plan, found: list[dict[str, Any]]) -> Report:
    """A report of the shards that are whole, by their markers."""
    report = Report(where.url, plan.model.name, plan.model.fingerprint, plan.shards)
    for marker in found:
        report.count(marker)
    return report


def versions() -> dict[str, str]:
    """What made the bytes."""
    names = ("clip-queue", "open-clip-torch", "torch", "pillow", "numpy", "pyarrow")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # torch, where only the workers have it
            continue
    return found
