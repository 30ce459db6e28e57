"""Revising a finished output: ``--update`` embeds what is new or changed, ``--retry-failed`` what failed.

A revision is a run of its own, in a folder in the output, of the shards that have something to do, each as a whole: the
rows that share a forward pass stay the same, and so do the bytes. Once all of them are complete they are swapped in,
and the manifest says so last (:mod:`clip_queue.bulk.output.swap`). Killed at any moment, the same call goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import Manifest, RunPlan
from clip_queue.bulk.output.markers import Marker, complete_markers
from clip_queue.bulk.output.swap import failures, home_of, revisions, swap
from clip_queue.bulk.run.options import EmbedOptions
from clip_queue.bulk.run.report import Report, noted
from clip_queue.bulk.run.resume import check_unchanged
from clip_queue.bulk.run.revision_plan import RevisionPlanner, pieces
from clip_queue.bulk.run.workers import NotStarted
from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources.changes import changes

Work = Callable[[Output, RunPlan], Report]
"""Has the shards of a plan done, as far as it comes."""


def is_asked(given: EmbedOptions) -> bool:
    """Whether a revision is asked for."""
    return bool(given.get("update") or given.get("retry_failed"))


def settle(output: Output, begun: Manifest, *, alone: bool = True) -> Manifest:
    """Finish the swap of a revision that was cut short in it; returns the manifest of the output as it is then.

    Args:
        alone: no other command is at work in the output. If one may be, such a revision is refused.
    """
    for home, found in revisions(output):
        if found.result is not None:
            if not alone:
                raise BadInput("an update of this output was cut short: the same command without a part finishes it")
            _swapped(output, home, found.plan)
            begun = manifest.load(output) or begun
    return begun


def nothing_to_do(given: EmbedOptions) -> str:
    """In words, that a revision would change nothing."""
    return f"{'the source is as it was' if given.get('update') else 'no row has failed'}: nothing to do"


def check_revisable(begun: Manifest | None, given: EmbedOptions, *, finished: bool) -> RunPlan:
    """The plan of an output that can be revised.

    Raises:
        BadInput: there is none yet, it is not finished, or it is a first look, of which nothing can be told to be new.
    """
    flags = " and ".join(f"--{name.replace('_', '-')}" for name in ("update", "retry_failed") if given.get(name))
    if begun is None:
        raise BadInput(f"there is no output yet: the same command without {flags} makes it")
    if not finished:
        raise BadInput(f"this output is not finished: the same command without {flags} finishes it first")
    if given.get("update") and begun.plan.options.is_first_look:
        raise BadInput(
            "this output is a first look (--limit, --sample), which is not updated: embed the source as it is now into "
            "another output"
        )
    return begun.plan


def planned_revision(
    output: Output,
    home: Callable[[str], Output],
    plan: RunPlan,
    markers: list[Marker],
    given: EmbedOptions,
    settings: Settings,
    should_stop: Callable[[], bool],
) -> RunPlan | None:
    """The plan of a revision of a finished output, with its plan file in ``home``; None: nothing has to be done.

    Raises:
        SourceChanged: rows that failed are asked for, and the source is another one by now.
        SourceError: the source cannot be listed or read, or nothing is left of it.
        OutputError: the plan file cannot be written.
        NotStarted: it was told to stop.
    """

    def seen(_shards: int, _rows: int) -> None:
        if should_stop():
            raise NotStarted("stopped while it was looking at what has changed")

    update, retry_failed = bool(given.get("update")), bool(given.get("retry_failed"))
    if not update:
        check_unchanged(output, plan)
    return RevisionPlanner(output, plan, markers, settings, seen).plan(home, update=update, retry_failed=retry_failed)


def revise(
    output: Output,
    plan: RunPlan,
    markers: list[Marker],
    given: EmbedOptions,
    settings: Settings,
    *,
    say: Callable[[str], None],
    should_stop: Callable[[], bool],
    work: Work,
) -> Report:
    """Revise an output with the plan ``plan``, whose shards have the ``markers``; returns the report of it then.

    Errors are those of :func:`planned_revision`, and of ``work``.
    """
    planned = _gone_on_with(output, given)
    if planned is None:
        planned = planned_revision(output, lambda id: home_of(output, id), plan, markers, given, settings, should_stop)
        if planned is None:
            done = Report.of(output, plan, markers)
            done.revised = nothing_to_do(given)
            return done
        manifest.save(home_of(output, planned.id), planned)
    home, revision = home_of(output, planned.id), planned.revision
    assert revision is not None
    say(revision.words)
    report = work(home, planned) if revision.shards else None
    if report and not report.finished:
        return replace(report, output=output.url)
    if not report:
        manifest.save(home, planned, {})
    plan, after = _swapped(output, home, planned)
    done, again = Report.of(output, plan, after), set(revision.shards)
    done.resumed = sum(marker["rows"] + marker["failed"] for marker in after if marker["shard"] not in again)
    if report:
        done.seconds, done.waited = report.seconds, report.waited
    done.revised = revision.words
    if retried := set(revision.retried):
        then, now = (sum(failures(m) for m in each if m["shard"] in retried) for each in (markers, after))
        done.revised += f". {then - now:,} of {then:,} rows that had failed are embedded now"
    return done


def _gone_on_with(output: Output, given: EmbedOptions) -> RunPlan | None:
    """The plan of the revision that was begun, if it is the one that is asked for, and the source has not changed
    again. Any other is removed."""
    asked = bool(given.get("update")), bool(given.get("retry_failed"))
    kept: RunPlan | None = None
    for home, found in revisions(output):
        begun, revision = found.plan, found.plan.revision
        same = revision is not None and (revision.update, revision.retry_failed) == asked and kept is None
        if same and not changes(begun.source, (located.piece for located in pieces(home, begun)), begun.planned).names:
            kept = begun
        else:
            home.erase()
    return kept


def _swapped(output: Output, home: Output, plan: RunPlan) -> tuple[RunPlan, list[Marker]]:
    """Swap a finished revision in; returns the output's plan and markers then."""
    begun = manifest.load(output)
    assert begun is not None
    swap(output, home, plan, begun.plan.id)
    after = replace(plan, id=begun.plan.id, rows=None, revision=None)
    markers = list(complete_markers(output, after))
    report = Report.of(output, after, markers)
    if begun.plan.rows is not None:
        after = replace(after, rows=report.rows + report.failed)
    if report.finished:
        manifest.save(output, after, report.to_json(), map(noted, markers))
    else:
        manifest.save(output, after)
    home.erase()
    output.clean()
    return after, markers
