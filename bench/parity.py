"""How near the quicker ways of decoding come to open_clip's own, in vectors at fp32: least and mean cosine.

``python -m bench.parity FOLDER`` takes a folder of JPEGs of your own, to see whether ``CLIP_QUEUE_JPEG_DRAFT`` suits
them. Without one it takes generated ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.common import VIT, Row, photo, show
from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference import preprocess
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode

MOST = 256  # pictures
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
        fast = preprocess.fast(clip.preprocess)
        assert fast
        side = max(clip.image_size)
        exact = vectors(clip, clip.preprocess, encoded)
        others = exact @ exact.T
        rows = [Row("two different pictures, for comparison", [float(others.mean())], "")]
        for name, crop, draft in (
            ("resize=fast", fast, 0),
            *((f"jpeg_draft={times}", clip.preprocess, times * side) for times in DRAFTS),
        ):
            cosines = (vectors(clip, crop, encoded, draft) * exact).sum(axis=1)
            rows.append(Row(f"{name}: least", [float(cosines.min())], "", "≥ 0.999"))
            rows.append(Row(f"{name}: mean", [float(cosines.mean())], ""))
        show(f"{len(encoded)} {what}, {parse_model(model).name}, against full decoding and Pillow's resizing", rows, 6)


def vectors(clip: ClipModel, crop: preprocess.Crop, encoded: list[bytes], draft: int = 0) -> NDArray[np.float32]:
    """Unit vectors (n, dimension)."""
    pixels = [decode(data, crop, max_bytes=10**9, max_pixels=10**9, draft=draft) for data in encoded]
    parts = [clip.embed_images(pixels[at : at + 32]).result() for at in range(0, len(pixels), 32)]
    rows = np.concatenate(parts)
    out: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out


if __name__ == "__main__":
    main(*sys.argv[1:2])
