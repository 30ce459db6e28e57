"""The manifest of an output: what was planned, by which versions, and what came of it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import orjson

from clip_queue.bulk.output.layout import MANIFEST, Output
from clip_queue.bulk.output.plan_file import PART
from clip_queue.bulk.output.table_layout import CLIP_RETRIEVAL, LAYOUTS
from clip_queue.shared.errors import Unreadable
from clip_queue.shared.fields import known_fields
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.workers import MANIFESTS
from clip_queue.sources.source import Source, SourceError

# Of the manifest. A release that knows only the first refuses an output that has the second by name; else it would
# write files of another layout, or other rows, into it, or seek a shard where it is not.
VERSION, LATER = 1, MANIFESTS
ADDED = ("long_texts", "layout", "limit", "sample", "seed")  # options that need the second
REVISED = ("added", "padded", "revision")  # fields of a plan that need the second
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
class Revision:
    """What a plan does to a finished output, whose plan it becomes afterwards: it embeds only some of its ``shards``.

    ``retried`` are those of them in which only rows that failed are wanted: where none of those comes this time, the
    shard stays as it is. ``update`` and ``retry_failed`` are what was asked for; ``words`` say what it does.
    """

    shards: tuple[int, ...]
    retried: tuple[int, ...] = ()
    update: bool = False
    retry_failed: bool = False
    words: str = ""

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Revision:
        return cls(**{**known_fields(cls, raw), **{name: tuple(raw[name]) for name in ("shards", "retried")}})


@dataclass(frozen=True)
class RunPlan:
    """A run as it was planned.

    ``rows`` is None where only reading tells. ``planned``: when planning began, seconds of the epoch; 0: not known.

    After updates, ``added`` has the first shard of each that added some, and the names of files are padded as for
    ``padded`` shards, as they were at first (0: for as many as there are). ``revision``: only some shards are to be
    done.
    """

    id: str
    source: Source
    model: ModelInfo
    options: PlanOptions
    shards: int
    rows: int | None
    planned: float = 0.0
    added: tuple[int, ...] = ()
    padded: int = 0
    revision: Revision | None = None

    @property
    def numbers(self) -> Sequence[int]:
        """The shards that are to be done, by their numbers, ascending."""
        return range(self.shards) if self.revision is None else self.revision.shards

    def names(self, shard: int) -> dict[str, str]:
        """A shard's files by kind (:meth:`Output.names`)."""
        return Output.names(shard, self.padded or self.shards)

    def to_json(self) -> dict[str, Any]:
        """Without ``planned``, which stands beside it, and without what 0.2.0 has added where it is not used: release
        0.1.0 reads no plan with a field unknown to it."""
        value = asdict(self)
        del value["planned"]
        value["source"] = self.source.to_json()
        for name in REVISED:
            if value[name] == getattr(RunPlan, name):
                del value[name]
        for name in ADDED:
            if value["options"][name] == getattr(PlanOptions, name):
                del value["options"][name]
        return value

    @property
    def version(self) -> int:
        """The version of the manifest that this plan needs."""
        added = any(getattr(self.options, name) != getattr(PlanOptions, name) for name in ADDED)
        revised = any(getattr(self, name) != getattr(RunPlan, name) for name in REVISED)
        in_parts = bool(self.planned) and self.shards > PART  # 0.1.0, which notes no time, has one file for all shards
        return LATER if added or revised or in_parts else VERSION

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> RunPlan:
        parts = {
            "source": Source.from_json(raw["source"]),
            "model": ModelInfo.from_json(raw["model"]),
            "options": PlanOptions(**known_fields(PlanOptions, raw["options"])),
            "added": tuple(raw.get("added", ())),
            "revision": Revision.from_json(raw["revision"]) if raw.get("revision") else None,
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


def save(
    output: Output, plan: RunPlan, result: dict[str, Any] | None = None, shards: Iterable[dict[str, Any]] = ()
) -> None:
    """Write the manifest, replacing what is there. ``shards``: of the result, written one after the other."""
    value = {
        "version": plan.version,
        "plan": plan.to_json(),
        "planned": plan.planned,
        "versions": versions(),
        "result": result and {**result, "shards": []},
    }
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2)
    before, place, after = text.rpartition(b"[]") if result else (text, b"", b"")
    with output.staged(MANIFEST) as path, path.open("wb") as file:
        file.write(before + place[:1])
        for number, shard in enumerate(shards):
            file.write((b",\n      " if number else b"\n      ") + orjson.dumps(shard))
        file.write(place[1:] + after)


def versions() -> dict[str, str]:
    """The versions of what makes the bytes; torch is missing where only the workers have it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    return found
