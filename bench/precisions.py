"""fp32 and int8, and bf16 where this CPU has it: CPU time, and cosines with fp32.

``python -m bench precisions [FOLDER [MODEL ...]]``

The images are the JPEGs of a folder, or generated ones. A model is one of ``CLIP_QUEUE_MODELS``: its weights decide how
near int8 comes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.common import ROUNDS, VIT, Row, bare, photo, show
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import Matrix, normalise
from clip_queue.worker.inference.clip_model import ClipModel, PendingFeatures
from clip_queue.worker.inference.decode import decode
from clip_queue.worker.inference.device import pick_precision

SIZES = (1, 8, 32)
SECONDS = 0.5  # CPU time of a turn
MOST = 256  # images
WHAT = ("a cat", "two dogs", "an old red car", "the sea", "a man who reads a book")
WHERE = ("", "on a table", "in front of a large house at night", "drawn by a child")
TEXTS = [f"a photo of {what} {where}" for what in WHAT for where in WHERE]


def main(arguments: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    folder, *models = arguments or [""]
    files = sorted(Path(folder).iterdir())[:MOST] if folder else []
    encoded = [path.read_bytes() for path in files] or [photo(seed, (256, 256)) for seed in range(64)]
    for model in models or ("emoji-mini", VIT):
        native = pick_precision("auto", torch.device("cpu")) == "bf16"
        precisions = ("fp32", "bf16", "int8") if native else ("fp32", "int8")
        clips = {p: bare(model, Settings(precision=p, resize="exact")) for p in precisions}
        compare(model.partition("=")[0], clips, encoded)


def compare(name: str, clips: dict[str, ClipModel], encoded: list[bytes]) -> None:
    exact = clips["fp32"]
    pixels = [decode(data, exact.preprocess, max_bytes=10**9, max_pixels=10**9) for data in encoded]
    tokens = [exact.tokenizer(text) for text in TEXTS * 2]
    rows = []
    for kind, payload in (("images", pixels), ("texts", tokens)):
        for size in SIZES:
            taken: dict[str, list[float]] = {precision: [] for precision in clips}
            for _ in range(ROUNDS):
                for precision, clip in clips.items():
                    embed = clip.embed_images if kind == "images" else clip.embed_texts
                    taken[precision].append(cpu(embed, payload[:size]) / size)
            rows += [Row(f"{kind}, {size} at once, {p}", values, "ms CPU each") for p, values in taken.items()]
        wanted = vectors(exact, kind, payload)
        for precision in list(clips)[1:]:
            cosines = (vectors(clips[precision], kind, payload) * wanted).sum(axis=1)
            rows.append(Row(f"{kind}, cosine with fp32, {precision}: least", [float(cosines.min())], "", "≥ 0.999"))
            rows.append(Row(f"{kind}, cosine with fp32, {precision}: mean", [float(cosines.mean())], ""))
    show(f"precisions, {name}, {len(pixels)} images, 1 thread", rows, digits=5)


def vectors(clip: ClipModel, kind: str, payload: list[Any]) -> Matrix:
    embed = clip.embed_images if kind == "images" else clip.embed_texts
    return normalise(embed(payload).result())


def cpu(embed: Callable[[Any], PendingFeatures], batch: list[Any]) -> float:
    """The CPU time of a pass, ms."""
    embed(batch).result()
    passes, began = 0, time.process_time()
    while (taken := time.process_time() - began) < SECONDS or passes < 2:
        embed(batch).result()
        passes += 1
    return 1000 * taken / passes


if __name__ == "__main__":
    main(sys.argv[1:])
