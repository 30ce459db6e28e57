"""Shared by the benchmarks: images, requests, the service, and the tables of figures."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import orjson
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.shared.workers import WorkerInfo, workers
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.worker.inference.clip_model import ClipModel

console = Console()
ROUNDS = 3
SECONDS = 8.0  # that each side of a round is measured
VIT = "ViT-B-32=ViT-B-32-quickgelu/random"


@dataclass(frozen=True)
class Row:
    """A figure and its value in each round. ``aim``: the value that the project aims at."""

    name: str
    values: Sequence[float]
    unit: str
    aim: str = ""

    def cells(self, digits: int) -> tuple[str, str, str, str]:
        middle = statistics.median(self.values)
        spread = f"{min(self.values):.{digits}g} to {max(self.values):.{digits}g}"
        return self.name, f"{middle:.{digits}g} {self.unit}", spread, self.aim


def pace() -> float:
    """Seconds of processor time of a loop of the interpreter's own: how quick machine and Python are now.

    An interpreter built without optimisations takes 1.4 to 1.5 times as long as one with.
    """

    def work() -> float:
        began, found = time.process_time(), {}
        for i in range(300_000):
            found[i % 100] = (i, str(i), [i, *range(3)], found.get(i % 50) is None)
        return time.process_time() - began

    return min(work() for _ in range(5))


def show(title: str, rows: Sequence[Row], digits: int = 4) -> None:
    """Print a table of figures, with so many significant digits."""
    table = Table(title=title, title_justify="left")
    for name, right in (("figure", False), ("median", True), ("spread", True), ("aim", True)):
        table.add_column(name, justify="right" if right else "left")
    for row in rows:
        table.add_row(*row.cells(digits))
    console.print(table)


def photo(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG of quality 85 with about as much detail as a photograph: noise at several scales."""
    random = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(random.integers(0, 255, (side, side, 3), dtype=np.uint8)).resize(size), np.float32)
        for side in (4, 16, 64)
    ]
    image = Image.fromarray(np.average(layers, axis=0, weights=(4, 2, 1)).astype(np.uint8))
    out = io.BytesIO()
    image.filter(ImageFilter.SMOOTH).save(out, "JPEG", quality=85)
    return out.getvalue()


def image_bodies(size: tuple[int, int], count: int = 64) -> Iterator[bytes]:
    """Bodies of ``embed_image`` with one image each; after ``count`` images they repeat."""
    images = (base64.b64encode(photo(seed, size)).decode() for seed in range(count))
    return itertools.cycle([orjson.dumps({"image": {"type": "base64", "value": image}}) for image in images])


def text_bodies() -> Iterator[bytes]:
    """Bodies of ``embed_text`` with one text each, all different, so that no cache has them."""
    for number in itertools.count():
        yield orjson.dumps({"text": f"a photo of thing {number} on a table"})


@contextmanager
def served(model: str, apis: int | None = 1, **settings: object) -> Iterator[EmbeddedStack]:
    """A service with a model and one worker. ``settings`` are added to those of the environment.

    ``apis``: number of API processes; None: as ``up`` chooses it.
    """
    update = {"models": [model], "max_queued_items": 100_000, **settings}
    with EmbeddedStack(Settings().model_copy(update=update), apis=apis) as stack:
        yield stack


def worker_of(stack: EmbeddedStack) -> WorkerInfo:
    """What the service's worker reports; at most a second old."""
    with contextlib.closing(Store.connect(stack.settings)) as store:
        return store.execute(workers())[0]


def quiet(stack: EmbeddedStack, seconds: float = 3.0, timeout: float = 120.0) -> None:
    """Wait until the worker has computed nothing for so long: what ran before must not be measured with what comes."""
    until, since, items = time.monotonic() + timeout, time.monotonic(), -1
    while time.monotonic() - since < seconds:
        if (now := worker_of(stack).items) != items:
            since, items = time.monotonic(), now
        if time.monotonic() > until:
            raise TimeoutError(f"the worker was not quiet within {timeout:g} s")
        time.sleep(0.2)


def bare(model: str, settings: Settings | None = None) -> ClipModel:
    """The model in this process, as a worker loads it."""
    return ClipModel(parse_model(model), settings or Settings())
