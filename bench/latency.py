"""The time that the service adds to decoding and the forward pass, one request at a time."""

from __future__ import annotations

import time

from bench.common import ROUNDS, Row, bare, image_bodies, photo, served, show
from bench.load import Load, run
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode

MODEL = "emoji-mini"
SIZE = (256, 256)


def main() -> None:
    clip = bare(MODEL)
    data = [photo(i, SIZE) for i in range(64)]
    with served(MODEL) as stack:
        bodies = image_bodies(SIZE)
        run(stack.api_url, "/clip/embed_image", bodies, at_once=1, seconds=2)
        rounds = [
            (run(stack.api_url, "/clip/embed_image", bodies, at_once=1, seconds=6), alone(clip, data))
            for _ in range(ROUNDS)
        ]
    show(
        f"one image at a time, {MODEL}, {clip.precision}, JPEG {SIZE[0]} × {SIZE[1]}",
        [
            Row("served p50", [1000 * s.percentile(0.5) for s, _ in rounds], "ms"),
            Row("served p99", [1000 * s.percentile(0.99) for s, _ in rounds], "ms"),
            Row("decode + bare forward p50", [1000 * b.percentile(0.5) for _, b in rounds], "ms"),
            Row("decode + bare forward p99", [1000 * b.percentile(0.99) for _, b in rounds], "ms"),
            Row("added p50", [1000 * (s.percentile(0.5) - b.percentile(0.5)) for s, b in rounds], "ms", "≤ 4"),
            Row("added p99", [1000 * (s.percentile(0.99) - b.percentile(0.99)) for s, b in rounds], "ms", "≤ 8"),
        ],
    )


def alone(clip: ClipModel, data: list[bytes]) -> Load:
    """The same work in this process, one image after another."""
    load, until, turn = Load(), time.perf_counter() + 3, 0
    while time.perf_counter() < until:
        began = time.perf_counter()
        pixels = decode(data[turn % len(data)], clip.preprocess, max_bytes=10**9, max_pixels=10**9)
        clip.embed_images([pixels]).result()
        load.latencies.append(time.perf_counter() - began)
        turn += 1
    return load


if __name__ == "__main__":
    main()
