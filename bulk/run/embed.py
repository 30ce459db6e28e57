"""Embed a dataset: plan it, have its shards done, report. Killed at any moment, the same call goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Unpack

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.markers import Marker, complete_markers
from clip_queue.bulk.run.display import Say, Show, display, ignore
from clip_queue.bulk.run.lead import WorkerLead
from clip_queue.bulk.run.options import EmbedOptions
from clip_queue.bulk.run.part import WHOLE, Part, at_work, turn_to_plan
from clip_queue.bulk.run.planner import Planner
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.reading import Given
from clip_queue.bulk.run.report import Report, noted
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.resume import check_empty, check_same, check_unchanged, with_model
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.revision import check_revisable, is_asked, revise, settle
from clip_queue.bulk.run.run_log import run_log
from clip_queue.bulk.run.runner import Runner
from clip_queue.bulk.run.scope import passed_lines, scope_text
from clip_queue.bulk.run.workers import NotStarted, common_model, find_workers, locked, started_workers
from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.models import ModelInfo, parse_model
from clip_queue.shared.owners import owner_of
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.sources.looking import heeding


def embed(
    source: Given,
    output: str | Path,
    *,
    workers: int | None = None,
    redis_url: str | None = None,
    part: str | tuple[int, int] | None = None,
    settings: Settings | None = None,
    retry: RetryPolicy = RetryPolicy(),
    log_file: str | Path | None = None,
    show: Show | bool | None = None,
    say: Say | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    lead: WorkerLead | None = None,
    **options: Unpack[EmbedOptions],
) -> Report:
    """Embed every row of ``source`` into ``output``; called again after whatever stopped it, it goes on.

    Args:
        source: a folder of images, tars, zips, parquet, ``.txt``, ``.csv``, ``.jsonl`` or ``.json``: a path, a glob, a
            brace expression, or a URL that fsspec opens; or a list of paths.
        output: a folder, likewise (:mod:`clip_queue.bulk.output.layout`).
        workers: worker processes to start; None: one a GPU, or one a core and at most four. Not with ``redis_url``.
        redis_url: a Redis whose workers do the work; None: start what is needed here, and stop it afterwards.
        part: the Kth of N parts, as ``"3/16"`` or ``(3, 16)``, where other commands, on other machines, do the others;
            the last of them finishes the output. Not with ``redis_url``.
        settings: everything else; None: from the environment.
        retry: when to try again, and when to give up.
        log_file: a file to which everything is appended that this call and the workers started here log.
        show: gets the :class:`~clip_queue.bulk.run.progress.Progress` several times a second; True: a bar, or lines;
            False: nothing is shown; None: a bar in a notebook.
        say: gets lines about what happens; None: printed where the progress is shown.
        should_stop: asked several times a second; True gives back what runs and ends the call.
        lead: for a run that a worker leads (:mod:`clip_queue.bulk.run.led`); None: this call leads it.
        options: see :class:`~clip_queue.bulk.run.options.EmbedOptions`.

    Raises:
        ClipError: the run could not begin or go on; the message says why and what to do.
        StackError: what is needed here could not be started.
    """
    settings = settings or Settings()
    folder = Output(str(output))
    model = options.get("model") or settings.models[0]
    name = parse_model(model).name
    own = WHOLE if part is None else Part.parse(part)
    check_part_is_possible(own, part is not None, redis_url, options)

    def stop_if_asked() -> None:
        if should_stop():
            raise NotStarted("stopped while it was looking at what is there")

    with heeding(stop_if_asked):
        request = EmbedRequest.of(source, options)
    if request.source.url == folder.url:
        raise OutputError("source and output are the same: choose another output")
    with ExitStack() as held:
        show, say = held.enter_context(display(show, say))
        log = held.enter_context(run_log(log_file, folder, settings.log_level))
        say = log.saying(say)

        def work(target: Output, plan_for: Callable[[ModelInfo, str], RunPlan]) -> Report:
            """Have the shards of a plan done, which is made once the model and the device are known."""
            here = settings.model_copy(update={"models": [model]})
            with started_workers(here, workers, redis_url, say, should_stop, log.file) as (here, check_alive):
                with closing(Store.connect(here)) as store:
                    alive = find_workers(store, name, should_stop, retry.find_workers)
                plan = plan_for(common_model(alive, name), alive[0].device)

                def should_end() -> bool:
                    check_alive()
                    check_part()
                    return should_stop()

                store = Store.connect(here)
                return run_plan(
                    here,
                    target,
                    plan,
                    store,
                    retry=retry,
                    show=show,
                    should_stop=should_end,
                    part=own,
                    lead=lead,
                )

        wait = lead.lock_wait if lead else 0.0
        held.enter_context(locked(folder, wait, should_stop, shared=part is not None))
        check_part = held.enter_context(at_work(folder, own, say, should_stop)) if part is not None else ignore
        begun, report, markers = manifest.load(folder), None, list[Marker]()
        planning = held.enter_context(ExitStack())
        if part is not None and begun is None:
            begun = planning.enter_context(turn_to_plan(folder, say, should_stop))
        if begun:
            request = request.going_on(begun.plan.source)
        planner = Planner(folder, request, settings, say, should_stop)
        if begun:
            check_same(begun.plan, request.source, request.plan_options(begun.plan.options), name)
            with heeding(stop_if_asked):
                begun = settle(folder, begun, alone=part is None)
                if begun.result and is_asked(options):
                    markers = list(complete_markers(folder, begun.plan))
                if begun.result or part is not None:
                    report = Report.of(folder, begun.plan, markers or complete_markers(folder, begun.plan), own)
        finished = report is not None and report.finished
        if is_asked(options):
            plan = check_revisable(begun, options, finished=finished)

            def go_on(home: Output, plan: RunPlan) -> Report:
                return work(home, lambda info, _: with_model(plan, info))

            revised = revise(folder, plan, markers, options, settings, say=say, should_stop=should_stop, work=go_on)
            return log.ended(revised)
        if begun and report and finished:
            with heeding(stop_if_asked):
                if begun.result:
                    check_unchanged(folder, begun.plan)
                else:
                    finish(folder, begun.plan, report.seconds)
            if part is None:
                folder.clean()
            return log.ended(report)
        if not begun:
            check_empty(folder)
        planned = None if begun else planner.write_shards()
        if known := begun.plan.source if begun else planned and planned.source:
            rows = begun.plan.rows if begun else planned.rows if planned else None
            for line in (f"embedding {scope_text(known)}", *passed_lines(known, rows)):
                say(line)

        def plan_for(info: ModelInfo, device: str) -> RunPlan:
            if begun:
                return with_model(begun.plan, info)
            assert planned is not None
            plan = planner.plan(planned, info, device, shared_workers=redis_url is not None)
            manifest.save(folder, plan)
            planning.close()
            return plan

        return log.ended(work(folder, plan_for))


def run_plan(
    settings: Settings,
    output: Output,
    plan: RunPlan,
    store: Store,
    *,
    retry: RetryPolicy,
    show: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    part: Part = WHOLE,
    lead: WorkerLead | None = None,
) -> Report:
    """Have a plan's shards, or those of a part, done by the workers of ``store``; it is closed.
    ``should_stop`` may raise."""
    began = time.monotonic()
    keys = [key.get_secret_value() for key in settings.api_keys]
    owner = lead.owner if lead else owner_of(keys[0] if keys else None)
    runner = Runner(
        settings,
        output,
        plan,
        store,
        owner=owner,
        should_stop=should_stop,
        show=show,
        retry=retry,
        part=part,
        lead=lead,
    )
    error: ClipError | None = None
    try:
        outcome = runner.run()
    except ClipError as failure:
        error = failure
        raise
    except OSError as failure:  # else the run's job would end as if all were well
        error = OutputError.because(failure)
        raise error from failure
    except BaseException as failure:
        error = ClipError(f"the command that led this run ended with {type(failure).__name__}")
        raise
    finally:
        runner.close(error)
    report = runner.report
    if not outcome.stopped:  # each shard is looked at once more, which may take a while
        report = Report.of(output, plan, complete_markers(output, plan, should_stop), part)
        if not report.finished and should_stop():
            report, outcome.stopped = runner.report, True
    report.part = "" if part == WHOLE else str(part)
    report.resumed = runner.progress.resumed
    report.waited = runner.waited
    report.seconds = time.monotonic() - began
    report.lost, report.stopped = outcome.lost, outcome.stopped
    if report.finished and part != WHOLE:
        finish(output, plan, report.seconds)
    elif report.finished:
        manifest.save(output, plan, report.to_json(), map(noted, complete_markers(output, plan)))
        output.clean()
    return report


def finish(output: Output, plan: RunPlan, seconds: float) -> None:
    """Write what came of a run into its manifest if all shards are complete. Of several commands for parts that end at
    once, each writes the same."""
    whole = Report.of(output, plan, complete_markers(output, plan))
    if whole.finished:
        whole.seconds = seconds
        manifest.save(output, plan, whole.to_json(), map(noted, complete_markers(output, plan)))


def check_part_is_possible(part: Part, asked: bool, redis_url: str | None, options: EmbedOptions) -> None:
    """Raise :class:`BadInput` for a part where there can be none."""
    if asked and redis_url is not None:
        raise BadInput(
            f"part {part} is for a command with workers of its own, and those of a Redis share the whole among "
            "themselves: give either the part or the Redis (redis_url, CLIP_QUEUE_REDIS_URL)"
        )
    if asked and is_asked(options):
        raise BadInput(
            f"part {part} is of a run, and --update and --retry-failed revise one that is finished: leave the part out"
        )
