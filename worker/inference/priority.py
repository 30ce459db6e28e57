"""The priority of threads, by which the kernel gives cores first to what somebody waits for."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass

from clip_queue.shared.lane import Lane


@dataclass(frozen=True)
class Share:
    """The lanes that one thread computes, in order of precedence, and by how much it gives way (:func:`give_way`)."""

    lanes: tuple[Lane, ...] = tuple(Lane)
    nice: int = 0


def give_way(nice: int) -> None:
    """Let the calling thread, and those that it starts, give way to others by so much, as of ``nice(1)``.

    On Linux only: elsewhere it would be the whole process.
    """
    if nice and sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it
            os.nice(nice)
