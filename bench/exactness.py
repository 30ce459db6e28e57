"""How far a vector depends on what shared its batch, on padding, and on precision: largest |Δ| of unit vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.common import VIT, Row, show
from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.clip_model import ClipModel

TEXTS = ["cat", "a dog on green grass", "two red hearts", "a photo of a big old house near the sea at night"]


def main() -> None:
    for model in ("emoji-mini", VIT):
        exact = ClipModel(parse_model(model), Settings(precision="fp32"))
        rough = ClipModel(parse_model(model), Settings(precision="bf16"))
        random = np.random.default_rng(0)
        pictures = [random.integers(0, 255, (*exact.image_size, 3), dtype=np.uint8) for _ in range(32)]
        rows = []
        for name, clip in (("fp32", exact), ("bf16", rough)):
            alone = unit(np.concatenate([clip.embed_images([p]).result() for p in pictures]))
            rows.append(
                Row(f"picture alone against in a batch of 32, {name}", [gap(alone, images(clip, pictures))], "")
            )
            tokens = [clip.tokenizer(text) for text in TEXTS]
            single = unit(np.concatenate([clip.embed_texts([t]).result() for t in tokens]))
            rows.append(Row(f"text alone against beside longer ones, {name}", [gap(single, texts(clip))], ""))
        cosines = (images(exact, pictures) * images(rough, pictures)).sum(axis=1)
        rows.append(Row("pictures, bf16 against fp32: least cosine", [float(cosines.min())], "", "≥ 0.999"))
        cosines = (texts(exact) * texts(rough)).sum(axis=1)
        rows.append(Row("texts, bf16 against fp32: least cosine", [float(cosines.min())], "", "≥ 0.999"))
        show(f"exactness, {model}", rows)


def images(clip: ClipModel, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return unit(clip.embed_images(pictures).result())


def texts(clip: ClipModel) -> NDArray[np.float32]:
    return unit(clip.embed_texts([clip.tokenizer(text) for text in TEXTS]).result())


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    out: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out


def gap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max())


if __name__ == "__main__":
    main()
