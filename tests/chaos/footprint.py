"""What the processes of a storm take: memory, threads, open files; and what is left when they have ended."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tests.chaos.report import Process

PERIOD = 2.0  # seconds between two looks
FIRST = 60.0  # seconds after which the first figures are taken
MIB = 2**20


@dataclass(frozen=True)
class Figures:
    memory: float
    threads: int
    files: int


class Footprint(threading.Thread):
    """Looks at all processes every two seconds. ``roots``: the services' processes by name; ``first``: when the
    figures of the beginning are taken, seconds.

    Their children are named by what they are; of several with one name (decoding helpers) the sum is taken.
    """

    def __init__(self, roots: Callable[[], dict[str, psutil.Process]], first: float = FIRST) -> None:
        super().__init__(name="footprint", daemon=True)
        self._roots, self._due = roots, time.monotonic() + first
        self._over = threading.Event()
        self._first: dict[str, Figures] = {}
        self._last: dict[str, Figures] = {}
        self._most: dict[str, float] = {}
        self._born: dict[str, float] = {}  # of the process that has a name now
        self._starts: dict[str, int] = {}

    def run(self) -> None:
        while not self._over.wait(PERIOD):
            self.look()

    def look(self) -> None:
        now: dict[str, Figures] = {}
        for name, process in self._roots().items():
            with contextlib.suppress(psutil.Error):
                born = process.create_time()
                if born != self._born.get(name):
                    self._born[name] = born
                    self._starts[name] = self._starts.get(name, 0) + 1
                now[name] = figures(process)
                helpers = [h for h in process.children() if any("decode_helper" in word for word in h.cmdline())]
                if helpers:
                    seen = [figures(helper) for helper in helpers]
                    memory, threads, files = (sum(some) for some in zip(*map(vars_of, seen), strict=True))
                    now[f"{name} decoding"] = Figures(memory, int(threads), int(files))
        for name, found in now.items():
            self._most[name] = max(self._most.get(name, 0.0), found.memory)
        if not self._first and time.monotonic() >= self._due:
            self._first = dict(now)
        self._last = now

    def stop(self) -> list[Process]:
        """The last look, and the figures of all."""
        self._over.set()
        self.join(10)
        self.look()
        out = []
        for name in sorted(self._most):
            first, last = self._first.get(name), self._last.get(name)
            out.append(
                Process(
                    name,
                    first.memory if first else None,
                    last.memory if last else None,
                    self._most[name],
                    (first.threads if first else None, last.threads if last else None),
                    (first.files if first else None, last.files if last else None),
                    time.time() - self._born[name] if name in self._born else 0.0,
                    self._starts.get(name, 0),
                )
            )
        return out


def vars_of(figures: Figures) -> tuple[float, int, int]:
    return figures.memory, figures.threads, figures.files


def figures(process: psutil.Process) -> Figures:
    with process.oneshot():
        return Figures(process.memory_info().rss / MIB, process.num_threads(), process.num_fds())


def zombies(roots: dict[str, psutil.Process]) -> list[str]:
    """Ended children that nobody has waited for."""
    found = []
    for name, process in roots.items():
        with contextlib.suppress(psutil.Error):
            found += [
                f"zombie {child.pid} of {name}"
                for child in process.children(recursive=True)
                if child.status() == psutil.STATUS_ZOMBIE
            ]
    return found
