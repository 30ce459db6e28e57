"""Helper processes that decode images whose cost is not known to be small: one that overstays is killed and replaced.

A thread cannot be ended while Pillow holds it; a process can.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from clip_queue.shared.errors import BadImage, ClipError, Unavailable
from clip_queue.worker.inference.decode_helper import READY, REPLY, REQUEST
from clip_queue.worker.inference.image_limits import Limits

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "clip_queue.worker.inference.decode_helper")
BASE_MEMORY = 512 << 20  # bytes of a helper, and so many for each pixel that an image may have
FREE_TIMEOUT = 120.0  # seconds that an image waits for a process which is free
END_TIMEOUT = 5.0  # seconds until a killed process has ended; one that the kernel holds longer is left to it
START_TIMEOUT = 60.0  # seconds that a process may take to start on a loaded machine
PIXEL_MEMORY = 24  # JPEG 2000 takes 18, the most of all


class Unwanted(Exception):
    """Nobody waits for the image any more."""


class DecodeHelpers:
    """At most ``count`` processes, each started when it is first needed. Its methods are for many threads.

    ``timeout``: longest decoding of an image, seconds. ``memory``: bytes that a process may take, by default what the
    largest image within ``limits`` needs. ``command`` starts a process.
    """

    def __init__(
        self,
        count: int,
        limits: Limits,
        timeout: float,
        *,
        memory: int | None = None,
        command: Sequence[str] = COMMAND,
        free_timeout: float = FREE_TIMEOUT,
    ) -> None:
        self._limits = limits
        self._timeout = timeout
        self._free_timeout = free_timeout
        self._helpers = [_Helper(command, memory or BASE_MEMORY + PIXEL_MEMORY * limits.pixels) for _ in range(count)]
        self._idle: queue.LifoQueue[_Helper] = queue.LifoQueue()
        for helper in self._helpers:
            self._idle.put(helper)

    def to_rgb(self, data: bytes, draft: int = 0, wanted: Callable[[], bool] = lambda: True) -> Image.Image:
        """As :func:`clip_queue.worker.inference.decode.to_rgb`, in the first helper that is free.

        Args:
            wanted: whether somebody still waits for the image when a process is free.

        Raises:
            Unwanted: nobody does; it is not decoded.
            Unavailable: no process became free.
            BadImage: as there; also if decoding took longer than the time limit, or ended the helper.
        """
        limits = self._limits
        head = REQUEST.pack(len(data), limits.bytes, limits.pixels, limits.work, draft, self._timeout)
        try:
            helper = self._idle.get(timeout=self._free_timeout)
        except queue.Empty:
            reason = f"No process that decodes such images was free within {self._free_timeout:g} s; try again."
            raise Unavailable(reason) from None
        try:
            if not wanted():
                raise Unwanted
            width, height, body = helper.ask(head, data, self._timeout)
        finally:
            self._idle.put(helper)
        if not width:
            raise BadImage(body.decode())
        return Image.frombytes("RGB", (width, height), body)

    def close(self) -> None:
        """End the processes; what they decode fails."""
        for helper in self._helpers:
            helper.close()


class _Helper:
    """One process, started anew when it has ended. For one thread at a time, but for :meth:`close`."""

    def __init__(self, command: Sequence[str], memory: int) -> None:
        self._command = command
        self._memory = memory
        self._lock = threading.Lock()  # of the two below
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ask(self, head: bytes, data: bytes, timeout: float) -> tuple[int, int, bytes]:
        """A reply: width, height and what follows."""
        try:
            process = self._running()
        except OSError as error:  # no more processes, or no memory for one
            reason = f"The process that decodes such images cannot be started ({type(error).__name__})."
            raise ClipError(reason) from error
        assert process.stdin is not None
        assert process.stdout is not None
        with _killed_after(timeout, process) as late:
            try:
                process.stdin.write(head)
                process.stdin.write(data)
                process.stdin.flush()
                width, height, size = REPLY.unpack(process.stdout.read(REPLY.size).ljust(REPLY.size, b"\xff"))
                body = process.stdout.read(min(size, self._memory))
            except (OSError, ValueError):  # the process has ended, or it was closed
                width, height, size, body = 0, 0, 1, b""
        if late.is_set() or len(body) != size or (width and size != 3 * width * height):
            self._end()
            self._check_open()
            if late.is_set():
                raise BadImage.because(f"Decoding took longer than {timeout:g} s (setting decode_timeout).")
            raise BadImage.because("Decoding it ended the process that did it.")
        return width, height, body

    def close(self) -> None:
        """End the process, for good."""
        with self._lock:
            self._closed = True
        self._end()

    def _check_open(self) -> None:
        if self._closed:
            raise BadImage.because("The worker is stopping.")

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            try:
                process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                log.warning("process %d, which decoded images, was killed and has not ended", process.pid)
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # of what was not yet written to it
                    if pipe:
                        pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and process.poll() is not None:
            self._end()
            process = None
        if process is None:
            process = self._start()
            assert process.stdout is not None
            with _killed_after(START_TIMEOUT, process), contextlib.suppress(ValueError):  # it was closed
                process.stdout.read(len(READY))  # its start is no image's time
        return process

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:  # so that close() finds the process, or there is none
            self._check_open()
            self._process = subprocess.Popen(
                (*self._command, str(self._memory)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
            )
            return self._process


@contextlib.contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Kill ``process`` if the block takes longer; the event says that it was."""
    late = threading.Event()

    def kill() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.name = "decode-timeout"
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def environment() -> dict[str, str]:
    """The environment of a helper: without the settings, some of which are secrets."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("CLIP_QUEUE_")}
    root = str(Path(__file__).parents[3])  # where the package is found, by whatever path it was here
    path = os.pathsep.join(filter(None, (root, own.get("PYTHONPATH"))))
    return own | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
