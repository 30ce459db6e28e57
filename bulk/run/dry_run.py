"""A dry run: what a run would do, or the revision of a finished output, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions
from clip_queue.bulk.output.markers import complete_markers, never
from clip_queue.bulk.output.plan_file import PlanFile
from clip_queue.bulk.run import first_look
from clip_queue.bulk.run.options import EmbedOptions
from clip_queue.bulk.run.planner import smaller_shard_size
from clip_queue.bulk.run.reading import Given
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.resume import check_same
from clip_queue.bulk.run.revision import check_revisable, is_asked, nothing_to_do, planned_revision
from clip_queue.shared.errors import BadInput
from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.sources import storage
from clip_queue.sources.place import with_places
from clip_queue.sources.source import Source


@dataclass(frozen=True)
class DryRun:
    """What a run would do; ``first``: the names of the first rows' files, or of their containers. ``revised``: what an
    update or another try would do; shards and rows are then those that would be embedded."""

    source: Source
    shards: int
    rows: int | None
    first: list[str]
    revised: str = ""


def dry_run(
    source: Given,
    output: str | Path | None = None,
    *,
    settings: Settings | None = None,
    **options: Unpack[EmbedOptions],
) -> DryRun:
    """Look at a source, and with ``update`` or ``retry_failed`` at its output, and write nothing. Options and errors
    are those of :func:`clip_queue.embed`."""
    settings = settings or Settings()
    request = EmbedRequest.of(source, options)
    if is_asked(options):
        return _of_revision(request, output, settings)
    default, asked = PlanOptions().shard_size, request.shard_size
    look = request.plan_options(PlanOptions())
    completed, shards = first_look.plan_shards(request.source, look, asked or default, settings)
    request.check_used(completed)
    count, rows, known, first = 0, 0, True, list[str]()
    for shard in shards:
        first = first or [storage.display(piece.path) for piece in islice(shard.pieces, 3)]
        count, rows, known = count + 1, rows + (shard.rows or 0), known and shard.rows is not None
    if known and not asked and (smaller := smaller_shard_size(rows)) < default:
        count = sum(1 for _ in first_look.plan_shards(request.source, look, smaller, settings)[1])
    return DryRun(with_places(completed), count, rows if known else None, first)


def _of_revision(request: EmbedRequest, output: str | Path | None, settings: Settings) -> DryRun:
    if output is None:
        raise BadInput("what an update would do depends on the output: name the output")
    folder, given = Output(str(output)), request.given
    begun = manifest.load(folder)
    if begun:
        model = parse_model(given.get("model") or settings.models[0]).name
        request = request.going_on(begun.plan.source)
        check_same(begun.plan, request.source, request.plan_options(begun.plan.options), model)
    markers = list(complete_markers(folder, begun.plan)) if begun and begun.result else []
    finished = begun is not None and Report.of(folder, begun.plan, markers).finished
    plan = check_revisable(begun, given, finished=finished)
    with TemporaryDirectory(prefix="clip-queue-") as temporary:
        home = Output(temporary)
        revised = planned_revision(folder, lambda _: home, plan, markers, given, settings, never)
        if revised is None or revised.revision is None:
            return DryRun(plan.source, 0, 0, [], nothing_to_do(given))
        numbers, file = revised.revision.shards, PlanFile(home)
        first = [storage.display(piece.path) for number in numbers[:1] for piece in file.shard(number).pieces[:3]]
        return DryRun(revised.source, len(numbers), revised.rows, first, revised.revision.words)
