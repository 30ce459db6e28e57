"""A deployment by ``clip-queue up`` beside the other services of a storm, whose logs are lost in every way."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.chaos.report import Report
from tests.harness import Service, free_port

SECONDS = (0.5, 2.0)  # that a log is gone or useless


class Up(Service):
    """``clip-queue up`` with its own API and workers on the store of the storm."""

    def __init__(self, folder: Path, workers: int, env: dict[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = folder / "data"
        command = [sys.executable, "-m", "clip_queue.cli", "up", "--port", str(self.port), "--workers", str(workers)]
        command += ["--api-processes", "1"]  # else as many as this machine has cores for
        super().__init__("up", [*command, "--data-dir", str(self.data)], folder, env)

    @property
    def ready(self) -> bool:
        return "ready in" in self.log.read_text(errors="replace")

    def children(self) -> dict[str, psutil.Process]:
        """Its processes by the name of each."""
        found: dict[str, psutil.Process] = {}
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.Error):
                    words = process.cmdline()
                    name = next((w.partition("@")[0] for w in words if w.startswith("worker-")), None)
                    if name or "clip_queue.stack.api_server" in words:
                        found[name or "api"] = process
        return found


class LogLoss:
    """Ways to lose the logs of ``up``. No process may end by it, and the last worker starts without its log."""

    def __init__(self, up: Up, rng: random.Random, report: Report) -> None:
        self._up, self._rng, self._report = up, rng, report
        self._logs = up.data / "logs"

    def ways(self) -> dict[str, Callable[[], None]]:
        return {
            "delete logs": lambda: self._lose(Path.unlink),
            "truncate logs": lambda: self._lose(lambda log: os.truncate(log, 0)),
            "logs become folders": lambda: self._lose(self._folder),
            "logs on a full disk": lambda: self._lose(self._full_disk),
            "logs cannot be written": lambda: self._lose(lambda log: log.chmod(0)),
            "delete the folder of logs": self._lose_folder,
            "the folder of logs becomes a file": self._file,
        }

    def _lose(self, how: Callable[[Path], None]) -> None:
        """Lose each log, one in three of the times with a worker that starts meanwhile; then mend what was made."""
        before = self._before()
        for log in self._logs.glob("*.log"):
            with contextlib.suppress(OSError):
                how(log)
        self._wait()
        for log in self._logs.glob("*.log"):
            with contextlib.suppress(OSError):
                if log.is_symlink():
                    log.unlink()
                elif log.is_dir():
                    log.rmdir()
                else:
                    log.chmod(0o644)
        self._check(before)

    def _lose_folder(self) -> None:
        before = self._before()
        shutil.rmtree(self._logs, ignore_errors=True)
        self._wait()
        self._check(before)

    def _file(self) -> None:
        before = self._before()
        shutil.rmtree(self._logs, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._logs.touch()
        self._wait()
        with contextlib.suppress(OSError):
            self._logs.unlink()
        self._check(before)

    @staticmethod
    def _folder(log: Path) -> None:
        log.unlink()
        log.mkdir()

    @staticmethod
    def _full_disk(log: Path) -> None:
        log.unlink()
        log.symlink_to("/dev/full")

    def _before(self) -> dict[str, psutil.Process]:
        before = self._up.children()
        workers = sorted(name for name in before if name.startswith("worker-"))
        if workers and self._rng.random() < 0.5:
            with contextlib.suppress(psutil.Error):
                before.pop(workers[-1]).send_signal(signal.SIGKILL)
        return before

    def _wait(self) -> None:
        time.sleep(self._rng.uniform(*SECONDS))

    def _check(self, before: dict[str, psutil.Process]) -> None:
        if not self._up.alive:
            self._report.wrong.add(f"up ended without its logs:\n{self._up.tail(15)}")
            return
        for name, process in before.items():
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                self._report.wrong.add(f"{name} of up ended without its logs")
