"""The logs of child processes. Each child writes to a pipe, and one thread of this process writes what comes to files.

So no error of a file reaches a child: on a full disk, or where a log or its folder is gone, lines are lost and the
service goes on. A child never waits either: its end of the pipe does not block, and what does not fit is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import selectors
import threading
import time
from collections.abc import Callable
from pathlib import Path

from clip_queue.stack.log_file import RETRY, LogFile

LOG_LIMIT = 20 * 2**20  # bytes after which a log is moved to ``.log.1``, which replaces an older one
TAIL = 8192  # bytes at the end of a log that are kept in memory too
CHUNK = 65536  # bytes that are read at once
PIPE = 2**20  # bytes that a pipe holds, where the kernel allows it
QUIET = 60.0  # seconds without an error after which the next one is said again
POLL_INTERVAL = 0.1  # seconds after which the thread looks for new pipes
LAST_READS = 1000  # most chunks that are read from pipes that somebody still holds when the thread is to stop


class Log:
    """The log of one child: a file, and its last bytes in memory. Nothing here raises an error of the file."""

    def __init__(
        self, path: Path, say: Callable[[str], None], limit: int = LOG_LIMIT, also: LogFile | None = None
    ) -> None:
        """An older file is moved to ``.log.1``. ``say`` gets a line when the file cannot be written, ``also`` all that
        is."""
        self.path = path
        self._also = also
        self._old = path.with_suffix(".log.1")
        self._say, self._limit = say, limit
        self._fd = -1
        self._last = b""
        self._due = 0.0  # when to try again
        self._quiet = float("-inf")  # until when errors are not said
        with contextlib.suppress(OSError):
            path.replace(self._old)

    def write(self, data: bytes) -> None:
        """Append to the file, which is made anew if it or its folder is gone. Lost if that is not possible."""
        self._last = (self._last + data)[-TAIL:]
        if self._also:
            self._also.write(self.path.stem, data)
        if time.monotonic() < self._due:
            return
        try:
            fd = self._open()
            while data:
                data = data[os.write(fd, data) :]
            if os.fstat(fd).st_size > self._limit:
                self._rotate(fd)
        except OSError as error:
            self.close()
            now = time.monotonic()
            if now > self._quiet:
                why = error.strerror or type(error).__name__
                self._say(
                    f"{self.path} cannot be written ({why}): its lines are lost until it can be; all else goes on"
                )
            self._due, self._quiet = now + RETRY, now + QUIET

    def tail(self, lines: int = 12) -> str:
        """The last lines, whether they could be written or not."""
        return "\n".join(self._last.decode(errors="replace").strip().splitlines()[-lines:])

    def close(self) -> None:
        """Close the file. The next line opens it again."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        """The file that stands at the path now: somebody may have deleted or moved the one that was opened."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self.path.stat(), os.fstat(self._fd)):
                    return self._fd
            self.close()
        logs = self.path.parent
        logs.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        logs.mkdir(exist_ok=True)
        # A FIFO in its place would block without O_NONBLOCK.
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        return self._fd

    def _rotate(self, fd: int) -> None:
        try:
            self.path.replace(self._old)
        except OSError:
            os.ftruncate(fd, 0)  # better a log without its beginning than one without a limit
        else:
            self.close()


class LogWriter:
    """One thread that reads the pipes of all children and writes their logs."""

    def __init__(self) -> None:
        self._new: queue.SimpleQueue[tuple[int, Log, threading.Event]] = queue.SimpleQueue()
        self._open: dict[int, tuple[Log, threading.Event]] = {}
        self._selector = selectors.DefaultSelector()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def pipe(self, log: Log) -> tuple[int, threading.Event]:
        """The write end of a new pipe, which the caller closes, and an event: all holders have closed it.

        Raises:
            OSError: there are no more file descriptors.
        """
        read, write = os.pipe()
        os.set_blocking(write, False)
        if size := getattr(fcntl, "F_SETPIPE_SZ", None):
            with contextlib.suppress(OSError):
                fcntl.fcntl(write, size, PIPE)
        ended = threading.Event()
        self._new.put((read, log, ended))
        return write, ended

    def stop(self, timeout: float = 5.0) -> None:
        """Write what is in the pipes and end the thread."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._pump(POLL_INTERVAL)
        for _ in range(LAST_READS):
            if not self._pump(0):
                break
        for fd, (log, _ended) in list(self._open.items()):
            self._end(fd)
            log.close()
        self._selector.close()

    def _pump(self, timeout: float) -> bool:
        """Write what comes within ``timeout`` seconds; whether there was anything."""
        while not self._new.empty():
            fd, log, ended = self._new.get()
            self._open[fd] = log, ended
            self._selector.register(fd, selectors.EVENT_READ)
        ready = self._selector.select(timeout)
        for key, _ in ready:
            try:
                data = os.read(key.fd, CHUNK)
            except OSError:
                data = b""
            if data:
                self._open[key.fd][0].write(data)
            else:
                self._end(key.fd)
        return bool(ready)

    def _end(self, fd: int) -> None:
        self._selector.unregister(fd)
        os.close(fd)
        _, ended = self._open.pop(fd)
        ended.set()
