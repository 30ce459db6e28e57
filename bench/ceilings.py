"""What bulk cannot exceed: decoding alone, and the forward pass alone, on all cores (or the GPU) at once.

On a CPU each is done by a process a core with one torch thread, the best that the machine gives.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.common import bare
from bench.load import rate_of
from shared.settings import cores
from worker.clip import Clip
from worker.decode import decode

_clip: Clip


def _begin(model: str, alone: bool) -> None:
    global _clip
    if not alone:
        torch.set_num_threads(1)
    _clip = bare(model)


def _pixels(encoded: bytes) -> object:
    return decode(encoded, _clip.crop, max_bytes=10**9, max_pixels=10**9, draft=_clip.draft)


def _decode(files: list[Path], seconds: float) -> float:
    data = [path.read_bytes() for path in files]
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        _pixels(data[done % len(data)])
        done += 1
    return done / (time.perf_counter() - began)


def _forward(files: list[Path], seconds: float) -> float:
    pixels = [_pixels(path.read_bytes()) for path in files]
    sizes = (64, 256) if _clip.device.type == "cuda" else (8, 32)
    return max(
        rate_of(lambda n=n: len(_clip.embed_images(pixels[:n]).result()), seconds / len(sizes))  # type: ignore[arg-type,misc]
        for n in sizes
    )


class Ceilings:
    """``clip`` is the model in this process, to tell what it is."""

    def __init__(self, clip: Clip, pool: ProcessPoolExecutor, size: int) -> None:
        self.clip, self._pool, self._size = clip, pool, size

    def decoding(self, files: list[Path], seconds: float) -> float:
        """Rows a second."""
        return self._sum(_decode, files, seconds, cores())

    def forward(self, files: list[Path], seconds: float) -> float:
        """Rows a second at the best batch."""
        return self._sum(_forward, files, seconds, self._size)

    def _sum(self, work: Callable[[list[Path], float], float], files: list[Path], seconds: float, size: int) -> float:
        return sum(self._pool.map(work, [files] * size, [seconds] * size))


@contextmanager
def ceilings(model: str) -> Iterator[Ceilings]:
    clip = bare(model)
    cuda = clip.device.type == "cuda"
    spawn = multiprocessing.get_context("spawn")  # CUDA and torch's threads do not survive a fork
    with ProcessPoolExecutor(cores(), mp_context=spawn, initializer=_begin, initargs=(model, cuda)) as pool:
        yield Ceilings(clip, pool, 1 if cuda else cores())
