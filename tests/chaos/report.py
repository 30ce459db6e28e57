"""The account of a storm: a table for people, JSON for machines, and whether all promises were kept."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

KEPT = 50  # of a kind of findings that are quoted; all are counted


class Findings:
    """Things of a kind that should not be, such as lost jobs: all are counted, the first are quoted."""

    def __init__(self) -> None:
        self.count = 0
        self.quoted: list[str] = []
        self._lock = threading.Lock()

    def add(self, what: str) -> None:
        with self._lock:
            self.count += 1
            if self.count <= KEPT:
                self.quoted.append(what)


@dataclass(frozen=True)
class Process:
    """A process's figures: its memory (RSS, MiB), threads and open files; at a minute's age of the storm, and last.

    ``most``: the most memory that any process of this name had. ``age``: how long the last one has lived, seconds.
    """

    name: str
    first: float | None
    last: float | None
    most: float
    threads: tuple[int | None, int | None]
    files: tuple[int | None, int | None]
    age: float
    starts: int


@dataclass
class Report:
    seed: int = 0
    minutes: float = 0.0
    store: str = ""
    submitted: int = 0
    accepted: int = 0  # jobs
    answered: int = 0  # synchronous requests with 200
    refused: Counter[str] = field(default_factory=Counter)  # synchronous requests, by status
    repeated: Counter[str] = field(default_factory=Counter)  # submissions of jobs that came again, by status
    silent: int = 0  # requests that nobody ever answered, although the API lived
    succeeded: int = 0
    cancelled: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    hostile: Counter[str] = field(default_factory=Counter)  # expensive images, by how they ended
    lost: Findings = field(default_factory=Findings)
    wrong: Findings = field(default_factory=Findings)
    left: Findings = field(default_factory=Findings)  # what should be empty or gone, and is not
    outages: list[tuple[float, float, str]] = field(default_factory=list)  # seconds, when, amid which misfortunes
    misfortunes: Counter[str] = field(default_factory=Counter)
    expected: list[str] = field(default_factory=list)  # the misfortunes that each storm has at least once
    ended_early: Counter[str] = field(default_factory=Counter)  # processes that ended though nobody ended them
    duplicates: int = 0  # texts that went through the model more than once
    redeliveries: int = 0
    slowest: float = 0.0  # longest time from a worker's end to its job's next start, seconds
    keys: Counter[str] = field(default_factory=Counter)  # in the store at the end, by kind
    files: list[str] = field(default_factory=list)  # at the end, in the folders for temporary files and data
    processes: list[Process] = field(default_factory=list)
    phase: str = "start"  # what is under way, for a storm that does not end

    @property
    def kept(self) -> bool:
        """Whether nothing is lost, wrong, unanswered or left."""
        return not (self.lost.count or self.wrong.count or self.left.count or self.silent)

    def json(self) -> str:
        plain: dict[str, Any] = {"kept": self.kept, **vars(self)}
        for name in ("lost", "wrong", "left"):
            found: Findings = getattr(self, name)
            plain[name] = {"count": found.count, "quoted": found.quoted}
        plain["processes"] = [asdict(process) for process in self.processes]
        return json.dumps(plain, indent=1)

    def table(self) -> str:
        longest = max(self.outages, default=(0.0, 0.0, ""))
        rows: list[tuple[str, object]] = [
            ("submitted", self.submitted),
            ("accepted jobs", self.accepted),
            ("  succeeded", self.succeeded),
            ("  cancelled by their owners", self.cancelled),
            *counted("  failed", self.failed),
            ("  lost", self.lost.count),
            *counted("  submission repeated after", self.repeated),
            ("synchronous requests answered", self.answered),
            *counted("  refused", self.refused),
            ("  never answered", self.silent),
            *counted("expensive image", self.hostile),
            ("wrong", self.wrong.count),
            ("left behind", self.left.count),
            ("longest outage, s", f"{longest[0]:.1f}"),
            ("duplicate runs", self.duplicates),
            ("jobs of killed workers taken up again", self.redeliveries),
            ("longest time to redelivery, s", f"{self.slowest:.1f}"),
            *sorted(self.misfortunes.items()),
            *counted("ended by itself", self.ended_early),
            *counted("keys in the store at the end", self.keys),
        ]
        lines = [f"{name:<60}{value:>8}" for name, value in rows]
        longest_first = sorted(self.outages, reverse=True)
        lines += [f"outage of {s:.1f} s at {at:.0f} s: {amid}" for s, at, amid in longest_first[:5]]
        for found in (self.lost, self.wrong, self.left):
            lines += found.quoted[:8]
        if self.processes:
            lines.append(
                f"{'process':<22}{'minute 1':>10}{'end':>10}{'most':>10}  MiB{'threads':>12}{'files':>12}"
                f"{'age':>9}{'starts':>8}"
            )
            lines += [line(process) for process in self.processes]
        return "\n".join(lines)


def counted(what: str, counter: Counter[str]) -> list[tuple[str, object]]:
    return [(f"{what}: {name}", n) for name, n in sorted(counter.items())]


def line(p: Process) -> str:
    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f}"

    threads, files = (" → ".join(map(figure, pair)) for pair in (p.threads, p.files))
    memory = f"{figure(p.first):>10}{figure(p.last):>10}{p.most:>10.0f}"
    return f"{p.name:<22}{memory}     {threads:>12}{files:>12}{p.age:>8.0f}s{p.starts:>8}"
