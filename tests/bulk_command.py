"""``clip-queue embed`` as a process that tests start, watch, kill and start again."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import psutil

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import load
from clip_queue.bulk.output.markers import complete_markers
from tests.harness import Service, wait_for

ENDED = 240.0  # most seconds that a run takes on a loaded machine


class Embed(Service):
    """``clip-queue embed SOURCE OUTPUT OPTION…`` without a terminal. ``env`` has the URL of a Redis, if it uses one."""

    def __init__(
        self, folder: Path, source: str, output: Path, *options: object, name: str = "embed", env: dict[str, str]
    ) -> None:
        command = [sys.executable, "-m", "clip_queue.cli", "embed", source, str(output), *map(str, options)]
        super().__init__(name, command, folder, {"CLIP_QUEUE_PRECISION": "fp32", "OMP_NUM_THREADS": "1", **env})
        self.output = output
        self._begin = 0
        self._signalled = False

    def start(self) -> Embed:
        self._begin = self.log.stat().st_size if self.log.exists() else 0
        self._signalled = False
        super().start()
        return self

    def signal(self, number: signal.Signals) -> None:
        self._signalled = True
        super().signal(number)

    @property
    def stopping(self) -> bool:
        """Whether a signal was sent to it since its last start."""
        return self._signalled

    @property
    def said(self) -> str:
        """What it has printed since its last start."""
        return self.log.read_bytes()[self._begin :].decode()

    def ended(self, timeout: float = ENDED) -> int:
        """Wait for its end; returns the exit status."""
        assert self.process is not None
        wait_for(lambda: not self.alive, timeout, f"the command's end; it has printed:\n{self.said}")
        return self.process.wait()

    def complete(self) -> int:
        """The shards that are complete in its output."""
        return count_complete(self.output)

    def revised(self) -> int:
        """The shards that are complete of an update, or of another try, that is under way."""
        return sum(count_complete(home) for home in self.output.glob(".revision-*"))

    def in_the_middle(self, more: int = 2) -> None:
        """Wait until ``more`` shards are complete. The run must not have ended then."""
        before = self.complete()
        wait_for(
            lambda: self.complete() >= before + more or not self.alive, ENDED, f"shards; it has printed:\n{self.said}"
        )
        assert self.alive, self.said

    def children(self) -> list[psutil.Process]:
        """The processes that it has started."""
        return psutil.Process(self.pid).children(recursive=True)


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that have not ended."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def manifest(output: Path) -> dict[str, Any]:
    """The manifest of an output folder."""
    found: dict[str, Any] = json.loads((output / "manifest.json").read_bytes())
    return found


def count_complete(output: Path) -> int:
    """The number of shards of an output that are complete."""
    folder = Output(str(output))
    found = load(folder)
    return sum(1 for _ in complete_markers(folder, found.plan)) if found else 0
