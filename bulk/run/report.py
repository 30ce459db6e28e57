"""The report of a run: rows, failures by reason, speed, exit status."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.markers import EXAMPLES, Marker
from clip_queue.bulk.run.part import WHOLE, Part
from clip_queue.bulk.run.scope import counted, passed_lines, scope_text
from clip_queue.sources.source import Source


@dataclass
class Reason:
    """The number of rows that failed for one reason, and three of them: (image_path or None, message)."""

    rows: int = 0
    examples: list[tuple[str | None, str]] = field(default_factory=list)


@dataclass
class Report:
    """``rows`` were embedded and ``failed`` failed, in the whole output, or in a ``part`` of it (as ``3/16``, with
    ``shards`` of its own); ``resumed`` of them were done by earlier commands. ``missing`` are the parts of which shards
    are not complete yet, ``missing_shards`` of them together.

    ``halves`` of the embedded rows are so in part, for one of ``reasons``: zeros stand for an image or a text; ``cut``
    texts were longer than the model takes.

    ``lost`` are the shards that could not be done, with the reason. ``seconds`` are this command's, without the start
    of its workers; ``waited``: seconds that shards waited for reading, decoding and the forward pass.

    ``source`` is what was planned. ``left_out`` counts the rows that have images or texts which are not embedded, by
    ``images`` and ``texts``; ``without_text``, the rows that have no text where texts are embedded: zeros stand there.
    ``revised``: what an update, or trying again, has done to a finished output.
    """

    output: str
    model: str
    fingerprint: str
    shards: int
    rows: int = 0
    failed: int = 0
    halves: int = 0
    cut: int = 0
    resumed: int = 0
    complete: int = 0
    seconds: float = 0.0
    reasons: dict[str, Reason] = field(default_factory=dict)
    waited: dict[str, float] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    stopped: bool = False
    source: Source | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    without_text: int = 0
    revised: str = ""
    part: str = ""
    missing: list[str] = field(default_factory=list)
    missing_shards: int = 0

    @classmethod
    def of(cls, output: Output, plan: RunPlan, markers: Iterable[Marker], part: Part = WHOLE) -> Report:
        """A report of the shards of a part that are complete, by the markers of all that are."""
        is_part = part != WHOLE
        own = part.shards(plan.shards) if is_part else plan.numbers
        report = cls(output.url, plan.model.name, plan.model.fingerprint, len(own), source=plan.source)
        missing = set(range(plan.shards)) if is_part else set[int]()
        for marker in markers:
            missing.discard(marker["shard"])
            if not is_part or marker["shard"] in own:
                report.count(marker)
        if is_part:
            report.part, report.missing, report.missing_shards = str(part), part.missing(missing), len(missing)
        return report

    @property
    def finished(self) -> bool:
        return self.complete == self.shards

    @property
    def rate(self) -> float:
        """Rows a second that this command embedded."""
        return (self.rows + self.failed - self.resumed) / self.seconds if self.seconds else 0.0

    @property
    def limit(self) -> str | None:
        """The stage that the others waited for longest; None: no stage waited."""
        return max(self.waited, key=lambda stage: self.waited[stage]) if any(self.waited.values()) else None

    @property
    def status(self) -> int:
        """The command's exit status: 0; 3 where rows or halves failed; 1 where shards are missing; 130 after Ctrl-C."""
        if not self.finished:
            return 130 if self.stopped else 1
        return 3 if self.failed or self.halves else 0

    def count(self, marker: Marker) -> None:
        """Add a complete shard."""
        self.complete += 1
        self.rows += marker["rows"]
        self.failed += marker["failed"]
        self.halves += marker.get("halves", 0)
        self.cut += marker.get("cut", 0)
        self.without_text += marker.get("without_text", 0)
        for kind, rows in marker.get("left_out", {}).items():
            self.left_out[kind] = self.left_out.get(kind, 0) + rows
        for code, about in marker["errors"].items():
            reason = self.reasons.setdefault(code, Reason())
            reason.rows += about["rows"]
            room = EXAMPLES - len(reason.examples)
            reason.examples += [(e["image_path"], e["error"]) for e in about["examples"][:room]]

    def scope(self) -> list[str]:
        """What was embedded, and what was left out, a line each; nothing where the source is not known."""
        if self.source is None:
            return []
        lines = [scope_text(self.source, self.left_out)]
        if self.without_text:
            none = self.without_text == self.rows
            lines.append(f"{'no row has a' if none else f'{counted(self.without_text)} no'} text: zeros stand for it")
        return lines + passed_lines(self.source, self.rows + self.failed if self.finished else None)

    def to_json(self) -> dict[str, Any]:
        """What the manifest says of the whole."""
        reasons = {code: {"rows": r.rows, "examples": r.examples} for code, r in self.reasons.items()}
        return {
            "rows": self.rows,
            "failed": self.failed,
            "halves": self.halves,
            "cut": self.cut,
            "errors": reasons,
            "left_out": self.left_out,
            "without_text": self.without_text,
            "seconds": round(self.seconds, 1),
        }


def noted(marker: Marker) -> dict[str, Any]:
    """What the manifest keeps of a shard."""
    return {name: marker[name] for name in ("shard", "rows", "failed", "files", "seconds")}
