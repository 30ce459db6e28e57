"""The supervisor of child processes: it starts them, restarts those that end, and stops all of them in order."""

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

POLL_INTERVAL = 0.1  # seconds between checks of the children
END_POLL_INTERVAL = 0.02  # seconds between checks whether a child that was told to stop has ended
FIRST_DELAY = 0.25  # seconds before the first restart; each further delay is twice as long
HEALTHY_AFTER = 20.0  # seconds after which a child is healthy: its next end counts as the first again
KILL_TIMEOUT = 5.0  # seconds that the kernel has to end a process after SIGKILL
REPORTED_DEATHS = 4  # ends in a row that are all reported; after them only the 8th, 16th, 32nd, …
LOG_LIMIT = 20 * 2**20  # bytes after which a log is moved to ``.log.1``, which replaces an older one

_LAUNCHER = [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py"))]


@dataclass(frozen=True)
class Spec:
    """A child process. ``env`` is added to this process's environment. Secrets belong there, not in ``command``."""

    name: str
    command: list[str]
    grace: float = 5.0  # seconds between SIGTERM and SIGKILL
    rank: int = 0  # children stop by rank, the highest first; those of one rank stop together
    env: Mapping[str, str] = field(default_factory=dict)
    keep_fds: tuple[int, ...] = ()  # file descriptors it inherits


@dataclass
class Child:
    """A child and its state. Times are seconds on the monotonic clock."""

    spec: Spec
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0  # when it was started last
    due: float = 0.0  # when to start it next
    deaths: int = 0  # how often it has ended in a row without having been healthy
    ended: str = ""  # how it ended last

    @property
    def pid(self) -> int | None:
        """The id of its process; None if none runs."""
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
    """One thread starts, restarts and stops all children.

    The kernel ends a child when the thread that started it ends, so that thread must live longer than the child.
    Before :meth:`keep_alive`, a child that ends is not started again but appears in :attr:`ended`: a start that cannot
    succeed is reported, not repeated.
    """

    def __init__(
        self,
        folder: Path,
        *,
        say: Callable[[str], None] = lambda line: None,
        max_delay: float = 15.0,
        log_limit: int = LOG_LIMIT,
    ) -> None:
        """
        Args:
            folder: the working directory of the children; their logs are in ``folder/logs``.
            say: gets a line about each child that ends or cannot be stopped.
            max_delay: longest delay before a restart, seconds.
            log_limit: bytes after which a log is moved to ``.log.1``.
        """
        self.children: list[Child] = []
        self._folder, self._logs = folder, folder / "logs"
        self._say, self._max_delay, self._log_limit = say, max_delay, log_limit
        self._keep_alive = self._hurry = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def add(self, spec: Spec) -> Child:
        """Start a child. Its log is new; an older one is moved to ``.log.1``."""
        child = Child(spec, self._logs / f"{spec.name}.log")
        if child.log.exists():
            child.log.replace(child.log.with_suffix(".log.1"))
        self.children.append(child)
        return child

    def keep_alive(self) -> None:
        """From now on, children that end are started again."""
        self._keep_alive = True

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def ended(self) -> list[Child]:
        """The children that have ended and will not be started again."""
        return [child for child in self.children if child.ended and child.pid is None and not self._keep_alive]

    def hurry(self) -> None:
        """Make a current or later :meth:`stop` kill the children at once."""
        self._hurry = True

    def stop(self) -> None:
        """Stop all children, the highest rank first, and wait until none runs. It may be called again."""
        self._stopping.set()
        if self._thread.ident is not None:
            longest = sum(child.spec.grace + 2 * KILL_TIMEOUT for child in self.children)
            self._thread.join(timeout=longest + 5)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(POLL_INTERVAL):
                for child in list(self.children):
                    self._check(child)
        finally:
            self._stop_children()

    def _check(self, child: Child) -> None:
        """Start a child that is due, register its end, or limit its log."""
        now = time.monotonic()
        if child.process is None:
            if now >= child.due:
                self._spawn(child)
        elif child.process.poll() is not None:
            self._on_end(child, now)
        elif child.log.stat().st_size > self._log_limit:
            shutil.copyfile(child.log, child.log.with_suffix(".log.1"))
            os.truncate(child.log, 0)  # the child appends, so it goes on at the beginning

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
                start_new_session=True,  # so that Ctrl-C in a terminal reaches only the supervisor
            )
        child.started = time.monotonic()

    def _on_end(self, child: Child, now: float) -> None:
        """A child has ended: register how, kill the processes that it has left, and plan its restart."""
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
        if child.deaths <= REPORTED_DEATHS or child.deaths & (child.deaths - 1) == 0:  # a power of two
            again = f" (death {child.deaths} in a row, see {child.log})" if child.deaths > 1 else ""
            self._say(f"{child.spec.name} ended ({child.ended}); starting it again in {delay:g} s{again}")

    def _stop_children(self) -> None:
        """Send SIGTERM to the children, rank by rank, and wait until they have ended."""
        for rank in sorted({child.spec.rank for child in self.children}, reverse=True):
            same = [child for child in self.children if child.spec.rank == rank and child.process is not None]
            for child in same:
                if child.process is not None and child.process.poll() is None:
                    child.process.terminate()
            begin = time.monotonic()
            for child in same:
                self._await_end(child, begin + child.spec.grace)

    def _await_end(self, child: Child, deadline: float) -> None:
        """Wait for a child's end until ``deadline``, then kill it."""
        process = child.process
        assert process is not None
        while process.poll() is None and time.monotonic() < deadline and not self._hurry:
            time.sleep(END_POLL_INTERVAL)
        if process.poll() is None and not self._hurry:
            self._say(f"{child.spec.name} did not stop within {child.spec.grace:g} s; killing it")
        signal_group(process.pid, signal.SIGKILL)  # the child, and the processes that it has left
        try:
            process.wait(timeout=KILL_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._say(f"{child.spec.name} (pid {process.pid}) cannot be killed")


def describe(code: int) -> str:
    """How a process ended, in words. ``code`` is its return code, negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to all processes of a child's session, if there are any."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
