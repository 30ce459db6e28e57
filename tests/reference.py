"""The reference: open_clip's validation transform, ``encode_image`` and ``encode_text`` in fp32, item by item."""

from __future__ import annotations

import io
from collections.abc import Iterable

import open_clip
import torch
from PIL import Image

from clip_queue.shared.vectors import Matrix
from clip_queue.worker.inference.clip_model import CHECKPOINTS

SOURCE = f"local-dir:{CHECKPOINTS / 'emoji-mini'}"


class Reference:
    """A model as open_clip alone computes it."""

    def __init__(self, source: str = SOURCE) -> None:
        torch.set_num_threads(1)  # several threads would wait for each other on a busy machine
        self.model, _, self.transform = open_clip.create_model_and_transforms(source)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(source)

    @torch.inference_mode()
    def images(self, images: Iterable[bytes | Image.Image]) -> Matrix:
        """Raw features (n, dimension) of encoded or open images."""
        opened = (Image.open(io.BytesIO(i)) if isinstance(i, bytes) else i for i in images)
        rows = [self.model.encode_image(self.transform(i)[None]) for i in opened]
        return torch.cat(rows).numpy()

    @torch.inference_mode()
    def texts(self, texts: Iterable[str]) -> Matrix:
        """Raw features (n, dimension) of texts."""
        return torch.cat([self.model.encode_text(self.tokenizer([t])) for t in texts]).numpy()
