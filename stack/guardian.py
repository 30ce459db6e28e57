"""The guardian of a supervisor's children: a small process that ends them when the supervisor has been killed.

It reads a pipe whose write end only the supervisor has, so the pipe ends with it, on every system. The kernel's death
signal (``child.py``) stays beside it: Linux alone has that, and it also works where supervisor and guardian are killed
together. The process is run by path and isolated (``-I -S``): it needs little memory and nothing of this project.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

POLL_INTERVAL = 0.05  # seconds between checks whether the children have ended
END_TIMEOUT = 5.0  # seconds that the guardian has to end when its supervisor stops
RETRY = 1.0  # seconds between attempts to start one
# Most seconds that a child has to end when its supervisor was killed. A worker has no jobs to complete then: its store
# may have ended with it, and what is not done is done again by the next one.
ORPHAN_GRACE = 5.0
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what stops all processes politely


class Guardian:
    """The supervisor's side of it. Only one thread uses it. Nothing here raises: the children matter more."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._due = 0.0

    @property
    def pid(self) -> int | None:
        """The id of its process; None if none runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def fds(self) -> tuple[int, ...]:
        """The pipe, for a launcher that tells of itself; empty if there is none."""
        return (self._pipe,) if self._pipe >= 0 else ()

    def ensure(self, graces: Mapping[int, float]) -> None:
        """Start the process if it does not run. ``graces``: seconds between SIGTERM and SIGKILL, by pid."""
        if self.pid is not None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + RETRY
        self._close_pipe()
        try:
            read, self._pipe = os.pipe()
        except OSError:
            return
        os.set_blocking(self._pipe, False)
        for pid, grace in graces.items():  # before it runs: it may be the only thing that outlives this moment
            self._send(f"+{pid} {grace}\n")
        # It inherits what this thread blocks, so no signal ends it before it has come to ignore them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,  # what is sent to the supervisor's group does not reach it
            )
        except OSError:
            self._close_pipe()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(read)

    def forget(self, pid: int) -> None:
        """A child has ended."""
        self._send(f"-{pid}\n")

    def close(self) -> None:
        """End the process. What it was told of and not to forget is ended too."""
        self._close_pipe()
        if self._process is not None:
            try:
                self._process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _send(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it has ended: the next one is told of all that run
            if self._pipe >= 0:
                os.write(self._pipe, line.encode())

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def main() -> None:
    """The process: keep a list of children until standard input ends, then end those that are left."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    graces: dict[int, float] = {}
    for line in sys.stdin.buffer:
        what, numbers = line[:1], line[1:].split()
        if what == b"+":
            graces[int(numbers[0])] = float(numbers[1])
        else:
            graces.pop(int(numbers[0]), None)
    end(graces)


def end(graces: dict[int, float]) -> None:
    """Send SIGTERM to the processes ``graces``, and SIGKILL to the group of each when it has ended, or too late."""
    for pid in graces:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
    begin = time.monotonic()
    while graces:
        for pid, grace in list(graces.items()):
            if not _lives(pid) or time.monotonic() - begin > min(grace, ORPHAN_GRACE):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                del graces[pid]
        time.sleep(POLL_INTERVAL)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
