"""Resuming a run: is the run that is asked for the one that the output was begun with?"""

from __future__ import annotations

from dataclasses import asdict

from clip_queue.bulk.output.errors import AnotherRun
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.sources.source import Source


def check_same(plan: RunPlan, source: Source, options: PlanOptions, model: str) -> None:
    """Raise :class:`AnotherRun`, with what differs, unless the run that is asked for is the one that was planned.

    What is None in ``source`` agrees with everything that the plan has.
    """
    differences = [
        f"{name} is {there!r} there, {here!r} here"
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
