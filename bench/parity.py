"""Faster decoding against open_clip's: the least and the mean cosine of the vectors, at fp32.

``python -m bench.parity FOLDER`` takes the JPEGs of a folder, to see whether ``CLIP_QUEUE_JPEG_DRAFT`` suits them.
Without a folder it takes generated JPEGs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from bench.common import VIT, Row, photo, show
from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import Matrix, normalise
from clip_queue.worker.inference import preprocess
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode

MOST = 256  # images
GENERATED = ((256, 256), (640, 480), (1600, 1200))  # sizes
DRAFTS = (1, 2, 3, 4)  # times the model's image size


def main(folder: str | None = None) -> None:
    if folder:
        files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
        encoded, what = [path.read_bytes() for path in files[:MOST]], f"JPEGs of {folder}"
    else:
        encoded, what = [photo(seed, size) for size in GENERATED for seed in range(32)], "generated JPEGs"
    for model in ("emoji-mini", VIT):
        clip = ClipModel(parse_model(model), Settings(precision="fp32", resize="exact"))
        fast = preprocess.fast(clip.config)
        assert fast
        side = max(clip.image_size)
        exact = vectors(clip, clip.preprocess, encoded)
        others = exact @ exact.T
        rows = [Row("two different images, for comparison", [float(others.mean())], "")]
        for name, function, draft in (
            ("resize=fast", fast, 0),
            *((f"jpeg_draft={times}", clip.preprocess, times * side) for times in DRAFTS),
        ):
            cosines = (vectors(clip, function, encoded, draft) * exact).sum(axis=1)
            rows.append(Row(f"{name}: least", [float(cosines.min())], "", "≥ 0.999"))
            rows.append(Row(f"{name}: mean", [float(cosines.mean())], ""))
        show(f"{len(encoded)} {what}, {parse_model(model).name}, against full decoding and Pillow's resizing", rows, 6)


def vectors(clip: ClipModel, function: preprocess.Preprocess, encoded: list[bytes], draft: int = 0) -> Matrix:
    """Unit vectors (n, dimension) of images that ``function`` preprocesses."""
    pixels = [decode(data, function, max_bytes=10**9, max_pixels=10**9, draft=draft) for data in encoded]
    parts = [clip.embed_images(pixels[at : at + 32]).result() for at in range(0, len(pixels), 32)]
    return normalise(np.concatenate(parts))


if __name__ == "__main__":
    main(*sys.argv[1:2])
