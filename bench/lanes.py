"""Interactive requests alone and beside background and bulk work, which may add one forward pass.

On a CPU nobody waits for such a pass; there the quotient without it says more.
"""

from __future__ import annotations

import base64
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any

import httpx
import orjson

from bench import datasets
from bench.common import ROUNDS, VIT, Row, bare, image_bodies, photo, quiet, served, show
from bench.load import run
from clip_queue.bulk.run.embed import embed
from clip_queue.shared.settings import Settings
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode

SIZE = (256, 256)
BATCH = 8  # of background and bulk: the default on a CPU


def main() -> None:
    datasets.folder("256")  # the process that does bulk work may start none to make it
    for model in ("emoji-mini", VIT):
        clip = bare(model)
        with served(model) as stack:
            _one(model, clip, stack, "background", background, stack.api_url)
            _one(model, clip, stack, "bulk", bulk, stack.redis_url, stack.settings, model)


def _one(
    model: str, clip: ClipModel, stack: EmbeddedStack, lane: str, work: Callable[..., None], *arguments: Any
) -> None:
    pixels = [decode(photo(i, SIZE), clip.preprocess, max_bytes=10**9, max_pixels=10**9) for i in range(BATCH)]
    bodies = image_bodies(SIZE)
    ask = "/clip/embed_image"
    run(stack.api_url, ask, bodies, at_once=1, seconds=2)
    alone, busy, passes, rates = [], [], [], []
    for _ in range(ROUNDS):
        quiet(stack)  # the round before has left something to be finished
        alone.append(run(stack.api_url, ask, bodies, at_once=1, seconds=6))
        began = time.perf_counter()
        for _ in range(5):
            clip.embed_images(pixels).result()
        passes.append((time.perf_counter() - began) / 5)
        with _beside(work, *arguments) as rate:
            until = time.monotonic() + 60
            while not rate.value and time.monotonic() < until:
                time.sleep(0.1)
            assert rate.value, "nothing is done beside"
            busy.append(run(stack.api_url, ask, bodies, at_once=1, seconds=10))
            rates.append(rate.value)
    rows = [
        Row(f"{lane} meanwhile", rates, "images/s"),
        Row(f"one {lane} pass of {len(pixels)}", [1000 * p for p in passes], "ms"),
    ]
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        a, b = [load.percentile(share) for load in alone], [load.percentile(share) for load in busy]
        ratio = [(y - p) / x for x, y, p in zip(a, b, passes, strict=True)]
        rows += [
            Row(f"alone {name}", [1000 * x for x in a], "ms"),
            Row(f"beside {lane} {name}", [1000 * x for x in b], "ms"),
            Row(f"beside ÷ alone, {name}", [y / x for x, y in zip(a, b, strict=True)], ""),
            Row(f"(beside − one pass) ÷ alone, {name}", ratio, "", "≤ 2"),
        ]
    show(f"one image at a time, {model}, alone and beside {lane} work", rows)


@contextlib.contextmanager
def _beside(work: Callable[..., None], *arguments: Any) -> Iterator[Synchronized[float]]:
    """Run ``work`` in a process of its own, apart from the one that measures. Yields its images a second."""
    spawn = multiprocessing.get_context("spawn")
    stopping, rate = spawn.Event(), spawn.Value("d", 0.0)
    process = spawn.Process(target=work, args=(*arguments, stopping, rate), daemon=True)
    process.start()
    try:
        yield rate
    finally:
        stopping.set()
        process.join(60)
        process.kill()


def bulk(redis_url: str, settings: Settings, model: str, stopping: Event, rate: Synchronized[float]) -> None:
    """Run ``embed`` again and again."""
    source = str(datasets.folder("256"))
    while not stopping.is_set():
        with tempfile.TemporaryDirectory() as output:
            embed(
                source,
                output,
                model=model,
                redis_url=redis_url,
                settings=settings,
                show=lambda progress: setattr(rate, "value", progress.rate or rate.value),
                should_stop=stopping.is_set,
            )


def background(url: str, stopping: Event, rate: Synchronized[float]) -> None:
    """Keep four jobs of 64 images unfinished."""
    image = {"type": "base64", "value": base64.b64encode(photo(1, SIZE)).decode()}
    body = orjson.dumps({"task": "embed_image", "image": [image] * 64})
    done, began = 0, time.perf_counter()
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:

        def submit() -> str:
            job: str = client.post("/jobs", content=body, headers={"Content-Type": "application/json"}).json()["id"]
            return job

        jobs = [submit() for _ in range(4)]
        while not stopping.is_set():
            if client.get(f"/jobs/{jobs[0]}?wait=1").json()["state"] not in ("queued", "running"):
                done += 64
                rate.value = done / (time.perf_counter() - began)
                jobs = [*jobs[1:], submit()]
        for job in jobs:
            client.delete(f"/jobs/{job}")


if __name__ == "__main__":
    main()
