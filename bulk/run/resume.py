"""Resuming a run: is the run that is asked for the one that the output was begun with?

An output that no run was begun in must be empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from clip_queue.bulk.output.errors import AnotherRun, ForeignOutput, SourceChanged
from clip_queue.bulk.output.layout import LOCK, MANIFEST, PLAN, STAGING, Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.plan_file import PlanFile
from clip_queue.sources.changes import changes
from clip_queue.sources.source import Piece, Source, shown

NAMED = 5  # entries of a foreign folder that are named


def check_same(plan: RunPlan, source: Source, options: PlanOptions, model: str) -> None:
    """Raise :class:`AnotherRun`, with what differs, unless the run that is asked for is the one that was planned.

    What is None in ``source`` agrees with everything that the plan has.
    """
    differences = [
        f"{name} is {shown(repr(there))} there, {shown(repr(here))} here"
        for name, there, here in (
            ("the source", plan.source.url, source.url),
            ("the format", str(plan.source.format), str(source.format)),
            ("the image column", plan.source.image_column, source.image_column),
            ("the text column", plan.source.text_column, source.text_column),
            ("images", plan.source.images, source.images),
            ("texts", plan.source.texts, source.texts),
            ("the model", plan.model.name, model),
        )
        if here is not None and there != here
    ]
    differences += [
        f"the {name.replace('_', ' ')} is {plan.source.storage.get(name)!r} there, {here!r} here"
        for name, here in source.storage.items()
        if plan.source.storage.get(name) != here
    ]
    asked = asdict(options)
    differences += [
        f"{name.replace('_', ' ')} is {value!r} there, {asked[name]!r} here"
        for name, value in asdict(plan.options).items()
        if asked[name] not in (None, value)
    ]
    if differences:
        what = "; ".join(differences)
        raise AnotherRun(f"the output belongs to another run: {what}. Choose another output, or ask for the same")


def check_model(plan: RunPlan, fingerprint: str) -> None:
    """Raise :class:`AnotherRun` if the workers' model is not the one that the output was begun with."""
    if plan.model.fingerprint != fingerprint:
        raise AnotherRun(
            f"the output was begun with {plan.model.name} {plan.model.fingerprint} ({plan.model.precision}, resize "
            f"{plan.model.resize}); the workers have {fingerprint}: weights, preprocessing or precision differ. Choose "
            "another output, or serve that model"
        )


def check_empty(output: Output) -> None:
    """Raise :class:`ForeignOutput` if an output without a manifest holds anything else than a plan cut short."""
    ours = {LOCK, PLAN, STAGING}
    found = sorted(name for name in output.listed("") if name not in ours and not name.startswith("."))
    if found:
        more = ", …" if len(found) > NAMED else ""
        raise ForeignOutput(
            f"{output.url} is not empty, and holds no {MANIFEST} of a run ({', '.join(found[:NAMED])}{more}): nothing "
            "there is touched. Choose another output, or empty it"
        )


def check_unchanged(output: Output, plan: RunPlan) -> None:
    """Raise :class:`SourceChanged` if the source of a finished run has other files than when it was planned."""
    differences = changes(plan.source, _pieces(output, plan), plan.planned)
    if plan.options.is_first_look:
        differences.names.pop("new", None)  # files that it left out are not in the plan
    if found := str(differences):
        raise SourceChanged(
            f"the source has changed since this output was made: {found}. What is there stays as it is; choose another "
            "output to embed the source as it is now"
        )


def _pieces(output: Output, plan: RunPlan) -> Iterator[Piece]:
    """All pieces of a plan, in order."""
    file = PlanFile(output)
    for shard in range(plan.shards):
        yield from file.shard(shard).pieces
