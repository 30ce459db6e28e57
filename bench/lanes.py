"""Interactive requests alone and beside background and bulk work, which may add one forward pass."""

from __future__ import annotations

import base64
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import httpx

from bench import datasets
from bench.common import ROUNDS, VIT, Row, bare, image_bodies, photo, quiet, served, show
from bench.load import run
from clip_queue.bulk.run.embed import embed
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode

SIZE = (256, 256)
BATCH = 8  # of background and bulk: the default on a CPU

Beside = Callable[[], contextlib.AbstractContextManager[list[float]]]


def main() -> None:
    for model in ("emoji-mini", VIT):
        clip = bare(model)
        with served(model) as stack:
            _one(model, clip, stack, "background", lambda stack=stack: background(stack.api_url))
            _one(model, clip, stack, "bulk", lambda stack=stack, model=model: bulk(stack, model))


def _one(model: str, clip: ClipModel, stack: EmbeddedStack, lane: str, beside: Beside) -> None:
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
        with beside() as rate:
            time.sleep(2)
            busy.append(run(stack.api_url, ask, bodies, at_once=1, seconds=10))
        rates.append(rate[0])
    rows = [Row(f"{lane} meanwhile", rates, "images/s"), Row(f"one {lane} pass", [1000 * p for p in passes], "ms")]
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        a, b = [load.percentile(share) for load in alone], [load.percentile(share) for load in busy]
        ratio = [(y - p) / x for x, y, p in zip(a, b, passes, strict=True)]
        rows += [
            Row(f"alone {name}", [1000 * x for x in a], "ms"),
            Row(f"beside {lane} {name}", [1000 * x for x in b], "ms"),
            Row(f"(beside − one pass) ÷ alone, {name}", ratio, "", "≤ 2"),
        ]
    show(f"one image at a time, {model}, alone and beside {lane} work", rows)


@contextlib.contextmanager
def bulk(stack: EmbeddedStack, model: str) -> Iterator[list[float]]:
    """Run ``embed`` again and again. Yields a list whose number is the rate, in images a second."""
    stopping, rate = threading.Event(), [0.0]

    def keep() -> None:
        source = str(datasets.folder("256"))
        while not stopping.is_set():
            with tempfile.TemporaryDirectory() as output:
                embed(
                    source,
                    output,
                    model=model,
                    redis_url=stack.redis_url,
                    settings=stack.settings,
                    show=lambda progress: rate.__setitem__(0, progress.rate or rate[0]),
                    should_stop=stopping.is_set,
                )

    thread = threading.Thread(target=keep, name="bulk-load")
    thread.start()
    try:
        yield rate
    finally:
        stopping.set()
        thread.join(timeout=60)


@contextlib.contextmanager
def background(url: str) -> Iterator[list[float]]:
    """Keep four jobs of 64 images unfinished. Yields a list that has the rate, in images a second, at the end."""
    image = {"type": "base64", "value": base64.b64encode(photo(1, SIZE)).decode()}
    body = {"task": "embed_image", "image": [image] * 64}
    stopping, rate, done = threading.Event(), [0.0], [0]

    def keep() -> None:
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            jobs = [client.post("/jobs", json=body).json()["id"] for _ in range(4)]
            while not stopping.is_set():
                state = client.get(f"/jobs/{jobs[0]}?wait=1").json()["state"]
                if state not in ("queued", "running"):
                    done[0] += 64
                    jobs = [*jobs[1:], client.post("/jobs", json=body).json()["id"]]
            for job in jobs:
                client.delete(f"/jobs/{job}")

    thread = threading.Thread(target=keep, name="background-load")
    began = time.perf_counter()
    thread.start()
    try:
        yield rate
    finally:
        rate[0] = done[0] / (time.perf_counter() - began)
        stopping.set()
        thread.join(timeout=60)


if __name__ == "__main__":
    main()
