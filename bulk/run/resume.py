"""Going on with a run: what of it is there already, and whether it is the same run at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import orjson

from clip_queue.bulk.output.layout import Options, Output, Plan
from clip_queue.shared.errors import BadInput
from clip_queue.sources.source import Source


class AnotherRun(BadInput):
    """The output belongs to a run of another source, model or options."""

    code = "another_run"


def whole(output: Output, plan: Plan, shard: int) -> dict[str, Any] | None:
    """A shard's marker, if the shard is whole: it is this plan's, and each file has the size it was written with."""
    data = output.read(output.names(shard, plan.shards)["shard"])
    if data is None:
        return None
    try:
        marker: dict[str, Any] = orjson.loads(data)
        sizes = {name: about["bytes"] for name, about in marker["files"].items()}
    except (ValueError, KeyError, TypeError):
        return None
    if marker.get("plan") != plan.id or any(output.size(name) != size for name, size in sizes.items()):
        return None
    return marker


def markers(output: Output, plan: Plan) -> Iterator[dict[str, Any]]:
    """The markers of the shards that are whole, in order."""
    listed = output.listed("shards")
    for shard in range(plan.shards):
        name = output.names(shard, plan.shards)["shard"].rpartition("/")[2]
        if name in listed and (marker := whole(output, plan, shard)):
            yield marker


def check_same(plan: Plan, source: Source, options: Options, model: str) -> None:
    """Raise :class:`AnotherRun` unless the run asked for is the one planned, saying what differs.

    What was left open (None) in ``source`` agrees with whatever the plan found.
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


def check_model(plan: Plan, fingerprint: str) -> None:
    """Raise :class:`AnotherRun` where the workers' model is not the one that the output was begun with."""
    if plan.model.fingerprint != fingerprint:
        raise AnotherRun(
            f"the output was begun with {plan.model.name} {plan.model.fingerprint} ({plan.model.precision}, resize "
            f"{plan.model.resize}); the workers have {fingerprint}: weights, preprocessing or precision differ. Choose "
            "another output, or serve that model"
        )
