"""Embed a dataset: plan it, have its shards done, report. Killed at any moment, the same call goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Unpack

from celery import Celery

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.markers import complete_markers
from clip_queue.bulk.run.options import EmbedOptions
from clip_queue.bulk.run.planner import Planner
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.reading import Given
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.resume import check_empty, check_same, check_unchanged, with_model
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.revision import check_revisable, is_asked, revise, settle
from clip_queue.bulk.run.runner import Runner
from clip_queue.bulk.run.scope import passed_lines, scope_text
from clip_queue.bulk.run.workers import NotStarted, common_model, find_workers, locked, started_workers
from clip_queue.shared.broker import celery_app
from clip_queue.shared.errors import ClipError
from clip_queue.shared.models import ModelInfo, parse_model
from clip_queue.shared.owners import owner_of
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store


def ignore(*_: object) -> None:
    """Where nobody wants to know."""


def embed(
    source: Given,
    output: str | Path,
    *,
    workers: int | None = None,
    redis_url: str | None = None,
    settings: Settings | None = None,
    retry: RetryPolicy = RetryPolicy(),
    show: Callable[[Progress], None] = ignore,
    say: Callable[[str], None] = ignore,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Unpack[EmbedOptions],
) -> Report:
    """Embed every row of ``source`` into ``output``; called again after whatever stopped it, it goes on.

    Args:
        source: a folder of images, tars, zips, parquet, ``.txt``, ``.csv``, ``.jsonl`` or ``.json``: a path, a glob, a
            brace expression, or a URL that fsspec opens; or a list of paths.
        output: a folder, likewise (:mod:`clip_queue.bulk.output.layout`).
        workers: worker processes to start; None: one a GPU, or one a core and at most four. Not with ``redis_url``.
        redis_url: a Redis whose workers do the work; None: start what is needed here, and stop it afterwards.
        settings: everything else; None: from the environment.
        retry: when to try again, and when to give up.
        show: gets the :class:`~clip_queue.bulk.run.progress.Progress` several times a second.
        say: gets lines about what happens.
        should_stop: asked several times a second; True gives back what runs and ends the call.
        options: see :class:`~clip_queue.bulk.run.options.EmbedOptions`.

    Raises:
        ClipError: the run could not begin or go on; the message says why and what to do.
        StackError: what is needed here could not be started.
    """
    settings = settings or Settings()
    folder = Output(str(output))
    model = options.get("model") or settings.models[0]
    name = parse_model(model).name
    request = EmbedRequest.of(source, options)
    if request.source.url == folder.url:
        raise OutputError("source and output are the same: choose another output")

    def work(target: Output, plan_for: Callable[[ModelInfo, str], RunPlan]) -> Report:
        """Have the shards of a plan done, which is made once the model and the device are known."""
        here = settings.model_copy(update={"models": [model]})
        with started_workers(here, workers, redis_url, say, should_stop) as (here, check_alive):
            with closing(Store.connect(here)) as store:
                alive = find_workers(store, name, should_stop, retry.find_workers)
            plan = plan_for(common_model(alive, name), alive[0].device)

            def should_end() -> bool:
                check_alive()
                return should_stop()

            store, sender = Store.connect(here), celery_app(here, publisher=True)
            return run_plan(here, target, plan, store, sender, retry=retry, show=show, should_stop=should_end)

    with locked(folder):
        begun, report = manifest.load(folder), None
        planner = Planner(folder, request, settings, say, should_stop)
        if begun:
            check_same(begun.plan, request.source, request.plan_options(begun.plan.options), name)
            begun = settle(folder, begun)
            markers = list(complete_markers(folder, begun.plan, should_stop)) if begun.result else []
            if should_stop():
                raise NotStarted("stopped while it was looking at what is done")
            report = Report.of(folder, begun.plan, markers) if begun.result else None
        finished = report is not None and report.finished
        if is_asked(options):
            plan = check_revisable(begun, options, finished=finished)

            def go_on(home: Output, plan: RunPlan) -> Report:
                return work(home, lambda info, _: with_model(plan, info))

            return revise(folder, plan, markers, options, settings, say=say, should_stop=should_stop, work=go_on)
        if begun and report and finished:
            check_unchanged(folder, begun.plan)
            folder.clean()
            return report
        if not begun:
            check_empty(folder)
        planned = None if begun else planner.write_shards()
        if known := begun.plan.source if begun else planned and planned.source:
            for line in (f"embedding {scope_text(known)}", *passed_lines(known)):
                say(line)

        def plan_for(info: ModelInfo, device: str) -> RunPlan:
            if begun:
                return with_model(begun.plan, info)
            assert planned is not None
            plan = planner.plan(planned, info, device, shared_workers=redis_url is not None)
            manifest.save(folder, plan)
            return plan

        return work(folder, plan_for)


def run_plan(
    settings: Settings,
    output: Output,
    plan: RunPlan,
    store: Store,
    sender: Celery,
    *,
    retry: RetryPolicy,
    show: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> Report:
    """Have a plan's shards done by the workers of ``store``; it and ``sender`` are closed. ``should_stop`` may
    raise."""
    began = time.monotonic()
    keys = [key.get_secret_value() for key in settings.api_keys]
    owner = owner_of(keys[0] if keys else None)
    runner = Runner(settings, output, plan, store, sender, owner=owner, should_stop=should_stop, show=show, retry=retry)
    error: ClipError | None = None
    try:
        outcome = runner.run()
    except ClipError as failure:
        error = failure
        raise
    except OSError as failure:  # else the run's job would end as if all were well
        error = OutputError.because(failure)
        raise error from failure
    finally:
        runner.close(error)
    markers = [] if outcome.stopped else list(complete_markers(output, plan, should_stop))
    report = Report.of(output, plan, markers)
    if not report.finished and (outcome.stopped or should_stop()):
        report, outcome.stopped = runner.report, True  # to look at every shard once more may take minutes
    report.resumed = runner.progress.resumed
    report.waited = runner.waited
    report.seconds = time.monotonic() - began
    report.lost, report.stopped = outcome.lost, outcome.stopped
    if report.finished:
        manifest.save(output, plan, report.result(markers))
        output.clean()
    return report
