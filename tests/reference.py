"""open_clip's own way: its validation transform, ``encode_image`` and ``encode_text``, in fp32, one item at a time."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

from clip_queue.worker.inference.clip_model import CHECKPOINTS

SOURCE = f"local-dir:{CHECKPOINTS / 'emoji-mini'}"


class Reference:
    def __init__(self, source: str = SOURCE) -> None:
        torch.set_num_threads(1)  # on a busy machine several wait for each other
        self.model, _, self.transform = open_clip.create_model_and_transforms(source)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(source)

    @torch.inference_mode()
    def images(self, pictures: Iterable[bytes | Image.Image]) -> NDArray[np.float32]:
        """Raw features (n, dimension) of encoded or open pictures."""
        opened = (Image.open(io.BytesIO(p)) if isinstance(p, bytes) else p for p in pictures)
        rows = [self.model.encode_image(self.transform(p)[None]) for p in opened]
        return torch.cat(rows).numpy()

    @torch.inference_mode()
    def texts(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Raw features (n, dimension)."""
        return torch.cat([self.model.encode_text(self.tokenizer([t])) for t in texts]).numpy()
