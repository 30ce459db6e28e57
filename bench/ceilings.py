"""Ceilings of bulk: the rates of decoding alone and of the forward pass alone, on all cores or on the GPU.

On a CPU a process on each core does it, with one torch thread, which is the fastest way. Decoding is measured in two
ways: by Pillow and open_clip's transform, and as the worker does it.
"""

from __future__ import annotations

import io
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from bench.common import bare
from bench.load import rate_of
from clip_queue.shared.settings import Settings, cores
from clip_queue.shared.vectors import Pixels
from clip_queue.worker.inference import preprocess
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode

_clip: ClipModel
_plain: preprocess.Preprocess


def _begin(model: str, settings: Settings, alone: bool) -> None:
    global _clip, _plain
    if not alone:
        torch.set_num_threads(1)
    _clip = bare(model, settings)
    _plain = preprocess.exact(_clip.config)


def _pixels(encoded: bytes) -> Pixels:
    return decode(encoded, _clip.preprocess, max_bytes=10**9, max_pixels=10**9, draft=_clip.draft)


def _as_open_clip(encoded: bytes) -> Pixels:
    return _plain(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _decode(files: list[Path], seconds: float, pixels: Callable[[bytes], Pixels]) -> float:
    data = [path.read_bytes() for path in files]
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        pixels(data[done % len(data)])
        done += 1
    return done / (time.perf_counter() - began)


def _forward(files: list[Path], seconds: float) -> float:
    pixels = [_pixels(path.read_bytes()) for path in files]
    sizes = (64, 256) if _clip.device.type == "cuda" else (8, 32)
    return max(
        rate_of(lambda n=n: len(_clip.embed_images(pixels[:n]).result()), seconds / len(sizes))  # type: ignore[misc]
        for n in sizes
    )


class Ceilings:
    """Measures rates, in rows a second. ``clip`` is the model in this process."""

    def __init__(self, clip: ClipModel, pool: ProcessPoolExecutor, size: int) -> None:
        self.clip, self._pool, self._size = clip, pool, size

    def plain_decoding(self, files: list[Path], seconds: float) -> float:
        """The rate of Pillow and open_clip's transform, up to 8-bit pixels."""
        return sum(self._pool.map(_decode, *self._args(files, seconds, cores()), [_as_open_clip] * cores()))

    def decoding(self, files: list[Path], seconds: float) -> float:
        """The rate of the worker's decoding."""
        return sum(self._pool.map(_decode, *self._args(files, seconds, cores()), [_pixels] * cores()))

    def forward(self, files: list[Path], seconds: float) -> float:
        """The rate of the forward pass at the best batch size."""
        return sum(self._pool.map(_forward, *self._args(files, seconds, self._size)))

    @staticmethod
    def _args(files: list[Path], seconds: float, processes: int) -> tuple[list[list[Path]], list[float]]:
        return [files] * processes, [seconds] * processes


@contextmanager
def ceilings(model: str, settings: Settings) -> Iterator[Ceilings]:
    """The processes that measure the ceilings of a model."""
    clip = bare(model, settings)
    cuda = clip.device.type == "cuda"
    spawn = multiprocessing.get_context("spawn")  # CUDA and torch's threads do not survive a fork
    with ProcessPoolExecutor(cores(), mp_context=spawn, initializer=_begin, initargs=(model, settings, cuda)) as pool:
        yield Ceilings(clip, pool, 1 if cuda else cores())
