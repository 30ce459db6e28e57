"""How much a vector depends on its batch, on padding and on precision: the largest |Δ| of unit vectors."""

from __future__ import annotations

import numpy as np

from bench.common import VIT, Row, show
from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import Matrix, Pixels, normalise
from clip_queue.worker.inference.clip_model import ClipModel

TEXTS = ["cat", "a dog on green grass", "two red hearts", "a photo of a big old house near the sea at night"]


def main() -> None:
    for model in ("emoji-mini", VIT):
        exact = ClipModel(parse_model(model), Settings(precision="fp32"))
        rough = ClipModel(parse_model(model), Settings(precision="bf16"))
        random = np.random.default_rng(0)
        pixels = [random.integers(0, 255, (*exact.image_size, 3), dtype=np.uint8) for _ in range(32)]
        rows = []
        for name, clip in (("fp32", exact), ("bf16", rough)):
            alone = normalise(np.concatenate([clip.embed_images([p]).result() for p in pixels]))
            rows.append(Row(f"image alone against in a batch of 32, {name}", [gap(alone, images(clip, pixels))], ""))
            tokens = [clip.tokenizer(text) for text in TEXTS]
            single = normalise(np.concatenate([clip.embed_texts([t]).result() for t in tokens]))
            rows.append(Row(f"text alone against beside longer ones, {name}", [gap(single, texts(clip))], ""))
        cosines = (images(exact, pixels) * images(rough, pixels)).sum(axis=1)
        rows.append(Row("images, bf16 against fp32: least cosine", [float(cosines.min())], "", "≥ 0.999"))
        cosines = (texts(exact) * texts(rough)).sum(axis=1)
        rows.append(Row("texts, bf16 against fp32: least cosine", [float(cosines.min())], "", "≥ 0.999"))
        show(f"exactness, {model}", rows)


def images(clip: ClipModel, pixels: list[Pixels]) -> Matrix:
    """Unit vectors (n, dimension) of images in one batch."""
    return normalise(clip.embed_images(pixels).result())


def texts(clip: ClipModel) -> Matrix:
    """Unit vectors (n, dimension) of the texts in one batch."""
    return normalise(clip.embed_texts([clip.tokenizer(text) for text in TEXTS]).result())


def gap(a: Matrix, b: Matrix) -> float:
    """The largest difference of two numbers at the same place."""
    return float(np.abs(a - b).max())


if __name__ == "__main__":
    main()
