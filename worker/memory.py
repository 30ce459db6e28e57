"""Memory that was freed and is still held: glibc gives it back to the system only from the end of each of its arenas.

Sixteen threads that decode have as many arenas, and one small object at an arena's end keeps all that is free below it:
after a few large images each, a worker of 1.0 GiB idled at 1.6 GiB, and grew with every further one.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

INTERVAL = 10.0  # seconds between two looks
KEPT = 256 * 2**20  # bytes of freed memory at an arena's end that glibc keeps by itself
MAPPED = 32 * 2**20  # bytes from which an allocation has pages of its own; glibc takes no more
GROWN = 64 * 2**20  # bytes by which the process has grown since memory was given back last
AGAIN = 60.0  # seconds after which that is tried again where it left more than there once was: it may have been in use

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers


class FreedMemory:
    """Gives freed memory back when the process has grown. For one thread.

    Args:
        size: bytes of memory that the process has; 0 where that cannot be known.
        trim: gives back what is free; None where the C library has no such function.
        now: the monotonic clock, seconds.
    """

    def __init__(
        self,
        *,
        size: Callable[[], int] | None = None,
        trim: Callable[[], object] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size = size or resident
        self._trim = trim or malloc_trim()
        self._now = now
        self._due = self._again = now() + INTERVAL
        self._least = self._left = self._size()

    def give_back(self) -> None:
        """Look whether the process has grown, if it is time to. Takes some milliseconds if it has."""
        if self._trim is None or self._now() < self._due:
            return
        now = self._now()
        self._due = now + INTERVAL
        size = self._size()
        if size > self._left + GROWN or (size > self._least + GROWN and now >= self._again):
            self._trim()
            self._left = self._size()
            self._least = min(self._least, self._left)
            self._again = now + AGAIN


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def malloc_trim() -> Callable[[], object] | None:
    """glibc's function of that name. It holds no lock of Python's while it works."""
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    return (lambda: trim(0)) if trim else None


def keep_freed_memory() -> None:
    """Have glibc keep what a forward pass frees for the next one, until :class:`FreedMemory` gives it back.

    By itself it returns the larger tensors to the system at each pass, and every page of them is then given anew, and
    set to zero, when it is touched: of 16 images of ViT-B/32 at int8 86,000 pages, a quarter of the pass.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_TRIM_THRESHOLD, KEPT)
        mallopt(_MMAP_THRESHOLD, MAPPED)
