"""Served ÷ bare: requests of one image each, 32 at once, against the forward pass alone."""

from __future__ import annotations

import time

from bench.common import ROUNDS, SECONDS, VIT, Row, bare, image_bodies, photo, served, show, worker_of
from bench.load import rate_of, run
from clip_queue.worker.inference.decode import decode

AT_ONCE = 32


def main() -> None:
    clip = bare(VIT)
    with served(VIT) as stack:
        for size in ((640, 480), (256, 256)):
            data = [photo(i, size) for i in range(64)]
            pixels = [decode(d, clip.preprocess, max_bytes=10**9, max_pixels=10**9) for d in data]
            bodies = image_bodies(size)
            run(stack.api_url, "/clip/embed_image", bodies, at_once=AT_ONCE, seconds=2)
            ratios, rates, bares, batches, latencies = [], [], [], [], []
            for _ in range(ROUNDS):
                time.sleep(1.2)  # the worker's figures are a second old at most
                before = worker_of(stack)
                load = run(stack.api_url, "/clip/embed_image", bodies, at_once=AT_ONCE, seconds=SECONDS)
                time.sleep(1.2)
                after = worker_of(stack)
                batch = (after.items - before.items) / (after.batches - before.batches)
                width = max(1, round(batch))
                alone = rate_of(lambda some=pixels[:width]: len(clip.embed_images(some).result()), SECONDS / 2)
                assert not load.failures
                rates.append(load.rate)
                bares.append(alone)
                ratios.append(load.rate / alone)
                batches.append(batch)
                latencies.append(1000 * load.percentile(0.5))
            show(
                f"ViT-B/32 (random weights), {clip.precision}, JPEG {size[0]} × {size[1]}, {AT_ONCE} at once",
                [
                    Row("served", rates, "images/s"),
                    Row("bare forward at that batch size", bares, "images/s"),
                    Row("served ÷ bare", ratios, "", "≥ 0.95"),
                    Row("mean batch", batches, "images"),
                    Row("latency p50", latencies, "ms"),
                ],
            )


if __name__ == "__main__":
    main()
