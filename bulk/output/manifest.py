"""The manifest of an output: what was planned, by which versions, and what came of it."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import orjson

from clip_queue.bulk.output.layout import MANIFEST, Output
from clip_queue.bulk.output.table_layout import CLIP_RETRIEVAL, LAYOUTS
from clip_queue.shared.errors import Unreadable
from clip_queue.shared.fields import known_fields
from clip_queue.shared.models import ModelInfo
from clip_queue.sources.source import Source, SourceError

# Of the manifest. A release that knows only the first refuses an output that has the second by name; else it would
# write files of another layout, or other rows, into it.
VERSION, LATER = 1, 2
ADDED = ("long_texts", "layout", "limit", "sample", "seed")  # options that need the second
PACKAGES = ("clip-queue", "open-clip-torch", "torch", "pillow", "numpy", "pyarrow")


@dataclass(frozen=True)
class PlanOptions:
    """What decides the bytes of the output beside source and model. ``batch_size`` does: how rows share a forward
    pass shows in a vector's last digits."""

    shard_size: int = 10_000
    batch_size: int = 8
    dtype: str = "float16"  # of the stored vectors
    normalize: bool = True
    long_texts: str = "fail"  # or cut: what becomes of texts that are longer than the model takes
    layout: str = CLIP_RETRIEVAL
    limit: int | None = None  # rows
    sample: float | None = None  # share of the rows
    seed: int = 0  # of the sample

    @property
    def is_first_look(self) -> bool:
        """Whether less than the whole source is asked for."""
        return self.limit is not None or self.sample is not None


@dataclass(frozen=True)
class RunPlan:
    """A run as it was planned.

    ``rows`` is None where only reading tells. ``planned``: when planning began, seconds of the epoch; 0: not known.
    """

    id: str
    source: Source
    model: ModelInfo
    options: PlanOptions
    shards: int
    rows: int | None
    planned: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Without ``planned``, which stands beside it, and without what 0.2.0 has added where it is not used: release
        0.1.0 reads no plan with a field unknown to it."""
        value = asdict(self)
        del value["planned"]
        value["source"] = self.source.to_json()
        for name in ADDED:
            if value["options"][name] == getattr(PlanOptions, name):
                del value["options"][name]
        return value

    @property
    def version(self) -> int:
        """The version of the manifest that this plan needs."""
        added = any(getattr(self.options, name) != getattr(PlanOptions, name) for name in ADDED)
        return LATER if added else VERSION

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> RunPlan:
        parts = {
            "source": Source.from_json(raw["source"]),
            "model": ModelInfo.from_json(raw["model"]),
            "options": PlanOptions(**known_fields(PlanOptions, raw["options"])),
        }
        return cls(**{**known_fields(cls, raw), **parts})


@dataclass(frozen=True)
class Manifest:
    """``result`` is None until the run has finished."""

    plan: RunPlan
    result: dict[str, Any] | None = None


def load(output: Output) -> Manifest | None:
    """An output's manifest; None: nothing was planned there.

    Raises:
        SourceError: the manifest cannot be understood.
    """
    data = output.read(MANIFEST)
    if data is None:
        return None
    try:
        raw = orjson.loads(data)
        if raw["version"] not in (VERSION, LATER):
            raise ValueError(f"version {raw['version']}")
        found = Manifest(RunPlan.from_json({**raw["plan"], "planned": raw.get("planned", 0.0)}), raw["result"])
        if found.plan.options.layout not in LAYOUTS:
            raise ValueError(f"layout {found.plan.options.layout}")
        return found
    except (ValueError, KeyError, TypeError, AttributeError, Unreadable) as error:
        raise SourceError(f"{output.path(MANIFEST)} cannot be understood ({error}): choose another output") from error


def save(output: Output, plan: RunPlan, result: dict[str, Any] | None = None) -> None:
    """Write the manifest, replacing what is there."""
    value = {
        "version": plan.version,
        "plan": plan.to_json(),
        "planned": plan.planned,
        "versions": versions(),
        "result": result,
    }
    output.write(MANIFEST, orjson.dumps(value, option=orjson.OPT_INDENT_2))


def versions() -> dict[str, str]:
    """The versions of what makes the bytes; torch is missing where only the workers have it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    return found
