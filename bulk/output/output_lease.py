"""Leases: what one command at a time may do in an output, on whatever machines the commands run.

A lease is a file ``.leases/NAME.1``, made in the one way that shared file systems and object stores have in common:
only if it is not there. Its holder writes it anew every few seconds, for no clock of another machine is trusted: who
sees a lease that does not change takes it to be that of a killed command, and makes ``NAME.2``. The highest number
holds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import LEASES, Output

BEAT = 5.0  # seconds after which a holder writes its lease anew
STALE = 60.0  # seconds without a change after which its holder counts as dead
STOP_TIMEOUT = 30.0  # seconds that the thread may take to end: a store may be slow


class OutputLease:
    """A lease on ``name`` that this command makes, or finds somebody else's; for one thread. Leaving its block lets go.

    Every method raises :class:`OSError` if the output cannot be read or written.
    """

    def __init__(
        self,
        output: Output,
        name: str,
        *,
        beat: float = BEAT,
        stale: float = STALE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output, self._name = output, name
        self._beat, self._stale, self._now = beat, stale, now
        self._about = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        self._token = secrets.token_hex(8)
        self._beats = 0
        self._number = 0  # of the lease that is held; 0: none is
        self._seen: tuple[bytes, float] | None = None  # somebody else's, and since when it has been the same
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease {name}", daemon=True)
        self.holder = ""  # the machine of the command that has it
        self.is_alive = False  # whether that command was seen at work
        self.is_lost = False  # whether somebody took this one over, because this process was paused or cut off

    def __enter__(self) -> OutputLease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def take(self) -> bool:
        """Whether the lease is this command's now. Else it is somebody else's, who may be dead: ask again.

        Raises:
            OutputError: the output is in a store where two can be the first.
        """
        number = max(self._numbers(), default=0)
        data = self._output.read(self._path(number)) if number else None
        if data is not None:
            since = self._look(data)
            if self._now() - since < self._stale and not self._is_left_here(data):
                return False
        if not self._create(number + 1, self._content()):
            return False
        if self._create(number + 1, b"a second first one"):
            self._output.remove(self._path(number + 1), last=True)
            raise self._unfit()
        self._number = number + 1
        self._thread.start()
        return True

    def release(self) -> None:
        """Let go of the lease, if it is held. The file of a store that is away is left: it goes stale."""
        if not self._number:
            return
        self._ending.set()
        self._thread.join(STOP_TIMEOUT)
        with contextlib.suppress(OSError):
            if self._is_mine():
                for number in sorted(self._numbers()):
                    if number <= self._number:
                        self._output.remove(self._path(number), last=True)
        self._number = 0

    def _create(self, number: int, data: bytes) -> bool:
        try:
            return self._output.create(self._path(number), data)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                raise self._unfit() from error
            raise

    def _unfit(self) -> OutputError:
        return OutputError(
            f"{self._output.url} is in a store that does not tell which of several commands was the first, and parts "
            "need that: choose an output on a shared file system or on S3, or embed it by one command"
        )

    def _look(self, data: bytes) -> float:
        """See who has the lease; since when it has been the same."""
        self.holder = str(_read(data).get("host", "?"))
        if self._seen is None or self._seen[0] != data:
            self.is_alive = self._seen is not None
            self._seen = data, self._now()
        return self._seen[1]

    def _is_left_here(self, data: bytes) -> bool:
        """Whether it is that of a process of this machine which is not there any more."""
        about = _read(data)
        if about.get("machine") != self._about["machine"] or not isinstance(about.get("pid"), int):
            return False
        try:
            os.kill(about["pid"], 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def _run(self) -> None:
        while not self._ending.wait(self._beat):
            with contextlib.suppress(OSError):  # the next time, or somebody takes it over
                if max(self._numbers(), default=0) > self._number:
                    self.is_lost = True
                    return
                if self._is_mine():
                    self._output.write(self._path(self._number), self._content())

    def _is_mine(self) -> bool:
        data = self._output.read(self._path(self._number))
        return data is not None and _read(data).get("token") == self._token

    def _numbers(self) -> list[int]:
        found = [file.rpartition(".") for file in self._output.listed(LEASES)]
        return [int(number) for name, _, number in found if name == self._name and number.isdecimal()]

    def _path(self, number: int) -> str:
        return f"{LEASES}/{self._name}.{number}"

    def _content(self) -> bytes:
        self._beats += 1
        return orjson.dumps({**self._about, "token": self._token, "beats": self._beats})


def _read(data: bytes) -> dict[str, Any]:
    """What a lease says; nothing while it is being written."""
    with contextlib.suppress(ValueError):
        if isinstance(found := orjson.loads(data), dict):
            return found
    return {}


def _machine() -> str:
    """What tells this machine, and the processes that this one sees, from others; "": nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return secrets.token_hex(8)  # like no other: such a lease must go stale
