"""The supervisor of child processes: it starts them, restarts those that end, and stops all of them in order."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clip_queue.shared.startup import CANNOT_WORK
from clip_queue.stack.guardian import Guardian
from clip_queue.stack.log import LOG_LIMIT, Log, LogWriter
from clip_queue.stack.log_file import LogFile

POLL_INTERVAL = 0.1  # seconds between checks of the children
END_POLL_INTERVAL = 0.02  # seconds between checks whether a child that was told to stop has ended
FIRST_DELAY = 0.25  # seconds before the first restart; each further delay is twice as long
HEALTHY_AFTER = 20.0  # seconds after which a child is healthy: its next end counts as the first again
KILL_TIMEOUT = 5.0  # seconds that the kernel has to end a process after SIGKILL
REPORTED_DEATHS = 4  # ends in a row that are all reported; after them only the 8th, 16th, 32nd, …
LAST_LINES = 1.0  # seconds that the last lines of a child that has ended may take to its log
DEATH_SIGNAL = sys.platform == "linux"  # whether the kernel can end a child with its parent, beside the guardian

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
    doors: tuple[socket.socket, ...] = ()  # sockets it inherits to accept on; closed here before it is stopped


@dataclass
class Child:
    """A child and its state. Times are seconds on the monotonic clock."""

    spec: Spec
    log: Log
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0  # when it was started last
    due: float = 0.0  # when to start it next
    deaths: int = 0  # how often it has ended in a row without having been healthy
    ends: int = 0  # how often it has ended at all
    code: int | None = (
        None  # its last return code, negative for a signal; None: it could not be started, or never ended
    )
    ended: str = ""  # how it ended last
    written: threading.Event = field(default_factory=threading.Event)  # all that it wrote is in its log

    @property
    def pid(self) -> int | None:
        """The id of its process; None if none runs."""
        process = self.process
        return process.pid if process is not None and process.returncode is None else None

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        return self.log.tail(lines)


class Supervisor:
    """One thread starts, restarts and stops all children, another writes their logs, and a guardian outlives both.

    The kernel ends a child when the thread that started it ends, so that thread must live longer than the child.
    No error of a file, a pipe or a start ends the thread: the child is tried again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        say: Callable[[str], None] = lambda line: None,
        log_file: LogFile | None = None,
        max_delay: float = 15.0,
        log_limit: int = LOG_LIMIT,
    ) -> None:
        """
        Args:
            folder: the working directory of the children; their logs are in ``folder/logs``.
            say: gets a line about each child that ends or cannot be stopped. What it raises is lost.
            log_file: gets what all children log as well.
            max_delay: longest delay before a restart, seconds.
            log_limit: bytes after which a log is moved to ``.log.1``.
        """
        self.children: list[Child] = []
        self._folder, self._logs = folder, folder / "logs"
        self._tell, self._max_delay, self._log_limit = say, max_delay, log_limit
        self._log_file = log_file
        self._hurry = False
        self._stopping = threading.Event()
        self._guardian, self._writer = Guardian(), LogWriter()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._writer.start()
        self._thread.start()

    def add(self, spec: Spec) -> Child:
        """Start a child. Its log is new; an older one is moved to ``.log.1``."""
        child = Child(spec, Log(self._logs / f"{spec.name}.log", self._say, self._log_limit, self._log_file))
        self.children.append(child)
        return child

    @property
    def alive(self) -> bool:
        """Whether the threads run."""
        return self._thread.is_alive() and self._writer.alive

    def hurry(self) -> None:
        """Make a current or later :meth:`stop` kill the children at once."""
        self._hurry = True

    def stop(self) -> None:
        """Stop all children, the highest rank first, and wait until none runs. It may be called again."""
        self._stopping.set()
        if self._thread.ident is not None:
            longest = sum(child.spec.grace + 2 * KILL_TIMEOUT for child in self.children)
            self._thread.join(timeout=longest + 5)
            self._writer.stop()

    def _say(self, line: str) -> None:
        with contextlib.suppress(Exception, SystemExit):  # whoever reads it may be gone, or its disk full
            self._tell(line)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(POLL_INTERVAL):
                self._guardian.ensure({child.pid: child.spec.grace for child in self.children if child.pid})
                for child in list(self.children):
                    self._check(child)
        finally:
            self._stop_children()
            self._guardian.close()

    def _check(self, child: Child) -> None:
        """Start a child that is due, or register its end."""
        now = time.monotonic()
        if child.process is None:
            if now >= child.due:
                self._spawn(child)
        elif child.process.poll() is not None:
            self._on_end(child, child.process, now)

    def _spawn(self, child: Child) -> None:
        spec, guardian = child.spec, self._guardian.fds
        about = [str(os.getpid()), str(spec.grace), str(int(DEATH_SIGNAL)), str(guardian[0] if guardian else -1)]
        child.started = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            pipe, child.written = self._writer.pipe(child.log)
            try:
                child.process = subprocess.Popen(
                    [*_LAUNCHER, *about, *spec.command],
                    cwd=self._folder,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **spec.env},
                    stdin=subprocess.DEVNULL,
                    stdout=pipe,
                    stderr=subprocess.STDOUT,
                    pass_fds=(*spec.keep_fds, *(door.fileno() for door in spec.doors), *guardian),
                    start_new_session=True,  # so that Ctrl-C in a terminal reaches only the supervisor
                )
            finally:
                os.close(pipe)
        except OSError as error:  # no more processes, file descriptors or memory, or the folder cannot be entered
            child.code = None
            self._plan_restart(child, f"not started: {error.strerror or type(error).__name__}", child.started)

    def _on_end(self, child: Child, process: subprocess.Popen[bytes], now: float) -> None:
        """A child has ended: register how, kill the processes that it has left, and plan its restart."""
        signal_group(process.pid, signal.SIGKILL)
        self._guardian.forget(process.pid)
        child.written.wait(LAST_LINES)
        child.code, child.process = process.returncode, None
        self._plan_restart(child, describe(process.returncode), now)

    def _plan_restart(self, child: Child, how: str, now: float) -> None:
        child.deaths = child.deaths + 1 if now - child.started < HEALTHY_AFTER else 1
        delay = min(self._max_delay, FIRST_DELAY * 2 ** min(child.deaths - 1, 16))
        child.due, child.ended = now + delay, how
        child.ends += 1  # the last, because who waits for it reads the others then
        if child.code == CANNOT_WORK and child.ends == 1:
            return  # who starts it says why, or it is said the next time
        if child.deaths <= REPORTED_DEATHS or child.deaths & (child.deaths - 1) == 0:  # a power of two
            again = f" (death {child.deaths} in a row, see {child.log.path})" if child.deaths > 1 else ""
            self._say(f"{child.spec.name} ended ({how}); starting it again in {delay:g} s{again}")

    def _stop_children(self) -> None:
        """Send SIGTERM to the children, rank by rank, and wait until they have ended."""
        for door in (door for child in self.children for door in child.spec.doors):
            door.close()  # else whoever connects now would wait at a door that nobody opens
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
            self._guardian.forget(process.pid)
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
