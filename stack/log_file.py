"""One file for the log lines of several processes, each line with the name of the process it comes from.

Lines are appended, so several commands may share a file. Once it is open no error of it reaches anybody: on a full disk
lines are lost and all else goes on.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

RETRY = 1.0  # seconds between attempts to write a log that could not be written
LONGEST = 65536  # bytes of a line without an end that are held


class LogFile:
    """An open log file; for many threads. Raises :class:`OSError` if it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock = threading.Lock()
        self._held: dict[str, bytes] = {}  # the beginnings of lines whose ends have not come
        self._due = 0.0  # when to try again
        self._fd = self._opened()

    def write(self, name: str, data: bytes) -> None:
        """Append what process ``name`` wrote, line by line. Lost if that is not possible."""
        with self._lock:
            *whole, rest = (self._held.pop(name, b"") + data).split(b"\n")
            if len(rest) > LONGEST:
                whole, rest = [*whole, rest], b""
            if rest:
                self._held[name] = rest
            if whole:
                self._append(b"".join(b"%s | %s\n" % (name.encode(), line) for line in whole))

    def close(self) -> None:
        """Write what is held, and close the file."""
        for name in list(self._held):
            self.write(name, b"\n")
        with self._lock, contextlib.suppress(OSError):
            os.close(self._fd)

    def _append(self, data: bytes) -> None:
        if time.monotonic() < self._due:
            return
        try:
            if not self._is_there():  # somebody has deleted or moved it
                fd = self._opened()
                os.close(self._fd)
                self._fd = fd
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            self._due = time.monotonic() + RETRY

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _opened(self) -> int:
        # A FIFO that nobody reads would block without O_NONBLOCK.
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
