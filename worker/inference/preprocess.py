"""A model's own preprocessing, up to 8-bit pixels of the size it takes; normalising is done on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms.v2 import functional

Preprocess = Callable[[Image.Image], NDArray[np.uint8]]
"""An RGB picture to (height, width, 3), uint8. For many threads."""


def exact(config: PreprocessCfg) -> Preprocess:
    """open_clip's validation transform to the last bit: Pillow resizes."""
    steps = _steps(config)

    def preprocess(image: Image.Image) -> NDArray[np.uint8]:
        for step in steps:
            image = step(image)
        return np.asarray(image)

    return preprocess


def fast(config: PreprocessCfg) -> Preprocess | None:
    """The same with torch's resizing, four times faster. Of the pixels 0.3 % differ, by one level, two where enlarged.

    Of pictures over twice as high as wide it is nearer to the published vectors: Pillow 13 resizes those down first,
    where Pillow before it, and torch, resize across first.

    None where the transform has steps that torch has no equal of (a ratio kept by padding).
    """
    steps = _steps(config)
    if [type(step) for step in steps] not in ([Resize], [Resize, CenterCrop]):
        return None
    resize, *center_crop = steps

    @torch.inference_mode()
    def preprocess(image: Image.Image) -> NDArray[np.uint8]:
        pixels = functional.pil_to_tensor(image)
        pixels = functional.resize(pixels, resize.size, resize.interpolation, antialias=True)
        for step in center_crop:
            pixels = functional.center_crop(pixels, step.size)
        out: NDArray[np.uint8] = pixels.permute(1, 2, 0).contiguous().numpy()
        return out

    return preprocess


def choose(config: PreprocessCfg, resize: str, precision: str) -> tuple[Preprocess, str]:
    """The function that a setting ``resize`` asks for, and which it is: ``exact`` or ``fast``.

    ``auto``: to the last bit where the weights are; where they are rounded anyway a level here and there is less.
    """
    wanted = resize if resize != "auto" else "exact" if precision == "fp32" else "fast"
    quick = fast(config) if wanted == "fast" else None
    return (quick, "fast") if quick else (exact(config), "exact")


def _steps(config: PreprocessCfg) -> Sequence[Any]:
    """open_clip's transform without its last steps, which make floats of the pixels; they are RGB before it begins."""
    steps = image_transform_v2(config, is_train=False).transforms
    kinds = [type(step).__name__ for step in steps[-3:]]
    if kinds != ["MaybeConvertMode", "MaybeToTensor", "Normalize"]:
        raise RuntimeError(f"open_clip's transform ends in {kinds}, not in MaybeConvertMode, MaybeToTensor, Normalize")
    return list(steps[:-3])
