"""Keeps child processes running: starts them, restarts what dies, stops all of them in order."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

POLL = 0.1  # seconds between looks at the children
FIRST_DELAY = 0.25  # seconds before the first restart; each further one waits twice as long
HEALTHY_AFTER = 20.0  # seconds a child must live for its next death to count as the first
KILLED_WITHIN = 5.0  # seconds the kernel may take to end a process after SIGKILL
LOG_LIMIT = 20 * 2**20  # bytes of a log before it is set aside; one older log is kept

_LAUNCHER = [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py"))]


@dataclass(frozen=True)
class Spec:
    """A child to be. ``env`` is added to this process's own; secrets go there, never into ``command``."""

    name: str
    command: list[str]
    grace: float = 5.0  # seconds between SIGTERM and SIGKILL
    rank: int = 0  # the highest rank stops first; children of one rank stop together
    env: Mapping[str, str] = field(default_factory=dict)
    keep_fds: tuple[int, ...] = ()  # file descriptors it inherits


@dataclass
class Child:
    spec: Spec
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0  # on the monotonic clock, as is due
    due: float = 0.0  # when to start it
    deaths: int = 0  # in a row, each after a short life
    ended: str = ""  # how it ended last

    @property
    def pid(self) -> int | None:
        """The process that runs now, if one does."""
        process = self.process
        return process.pid if process is not None and process.returncode is None else None

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 8192))
                return "\n".join(file.read().decode(errors="replace").strip().splitlines()[-lines:])
        except OSError:
            return ""


class Supervisor:
    """One thread owns the children: it starts, restarts and stops them.

    A child's death signal is tied to the thread that started it, so that thread has to outlive the child.
    Until :meth:`keep_alive`, what ends stays ended and shows in :attr:`ended`: a start that cannot work is reported,
    not repeated.
    """

    def __init__(
        self, folder: Path, *, say: Callable[[str], None] = lambda line: None, max_delay: float = 15.0
    ) -> None:
        """Children run in ``folder`` and log to ``folder/logs``; ``say`` gets a line about each death.

        ``max_delay`` is the longest wait before a restart, seconds.
        """
        self.children: list[Child] = []
        self._folder, self._logs = folder, folder / "logs"
        self._say, self._max_delay = say, max_delay
        self._keep_alive = self._at_once = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def add(self, spec: Spec) -> Child:
        """Start ``spec``; its log begins anew."""
        child = Child(spec, self._logs / f"{spec.name}.log")
        if child.log.exists():
            child.log.replace(child.log.with_suffix(".log.1"))
        self.children.append(child)
        return child

    def keep_alive(self) -> None:
        """From now on, what dies is started again."""
        self._keep_alive = True

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def ended(self) -> list[Child]:
        """Children that ended and are not to be started again."""
        return [child for child in self.children if child.ended and child.pid is None and not self._keep_alive]

    def hurry(self) -> None:
        """Make :meth:`stop`, under way or to come, skip the graces."""
        self._at_once = True

    def stop(self) -> None:
        """Stop all children, highest rank first; returns when none runs. Safe to call again."""
        self._stopping.set()
        if self._thread.ident is not None:
            graces = sum(child.spec.grace + 2 * KILLED_WITHIN for child in self.children)
            self._thread.join(timeout=graces + 5)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(POLL):
                for child in list(self.children):
                    self._tend(child)
        finally:
            self._stop_children()

    def _tend(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.due:
                self._spawn(child)
        elif child.process.poll() is not None:
            self._bury(child, now)
        elif child.log.stat().st_size > LOG_LIMIT:
            shutil.copyfile(child.log, child.log.with_suffix(".log.1"))
            os.truncate(child.log, 0)  # the child appends, so it goes on at the start

    def _spawn(self, child: Child) -> None:
        spec = child.spec
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(
                [*_LAUNCHER, str(os.getpid()), *spec.command],
                cwd=self._folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **spec.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=spec.keep_fds,
                start_new_session=True,  # a terminal's Ctrl-C reaches only the supervisor
            )
        child.started = time.monotonic()

    def _bury(self, child: Child, now: float) -> None:
        """A child has ended by itself: note why, end what it left behind, and plan its restart."""
        process = child.process
        assert process is not None
        if child.ended and not self._keep_alive:
            return
        child.ended = describe(process.returncode)
        signal_group(process.pid, signal.SIGKILL)
        if not self._keep_alive:
            return
        child.deaths = child.deaths + 1 if now - child.started < HEALTHY_AFTER else 1
        delay = min(self._max_delay, FIRST_DELAY * 2 ** (child.deaths - 1))
        child.process, child.due = None, now + delay
        if child.deaths <= 4 or child.deaths & (child.deaths - 1) == 0:  # the console stays readable
            again = f" (death {child.deaths} in a row, see {child.log})" if child.deaths > 1 else ""
            self._say(f"{child.spec.name} ended ({child.ended}); starting it again in {delay:g} s{again}")

    def _stop_children(self) -> None:
        for rank in sorted({child.spec.rank for child in self.children}, reverse=True):
            same = [child for child in self.children if child.spec.rank == rank and child.process is not None]
            for child in same:
                if child.process is not None and child.process.poll() is None:
                    child.process.terminate()
            begin = time.monotonic()
            for child in same:
                self._await_end(child, begin + child.spec.grace)

    def _await_end(self, child: Child, deadline: float) -> None:
        process = child.process
        assert process is not None
        while process.poll() is None and time.monotonic() < deadline and not self._at_once:
            time.sleep(POLL / 5)
        if process.poll() is None and not self._at_once:
            self._say(f"{child.spec.name} did not stop within {child.spec.grace:g} s; killing it")
        signal_group(process.pid, signal.SIGKILL)  # itself, and what it may have left behind
        try:
            process.wait(timeout=KILLED_WITHIN)
        except subprocess.TimeoutExpired:
            self._say(f"{child.spec.name} (pid {process.pid}) cannot be killed")


def describe(code: int) -> str:
    """How a process ended, for a person."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a child's whole session; nothing happens where it has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
