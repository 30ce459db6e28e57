"""The two ways of resizing: one equals open_clip's to the last bit, the other differs by one level in a few pixels."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import Pixels, cosine
from clip_queue.worker.inference import preprocess
from clip_queue.worker.inference.clip_model import ClipModel

SQUARE = PreprocessCfg(size=64)
SHAPES = [(64, 64), (640, 480), (480, 640), (65, 64), (3, 2), (1, 1), (40, 900), (1000, 12), (2000, 1500), (63, 63)]


def noise(width: int, height: int) -> Image.Image:
    """The hardest image for resizing: nothing in it is smooth."""
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def open_clips(image: Image.Image, config: PreprocessCfg) -> Pixels:
    plain = replace(config, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = image_transform_v2(plain, is_train=False)(image).permute(1, 2, 0).numpy() * 255
    return pixels.round().astype(np.uint8)


CONFIGS = [
    SQUARE,
    PreprocessCfg(size=224),
    replace(SQUARE, interpolation="bilinear"),
    replace(SQUARE, resize_mode="squash"),
    PreprocessCfg(size=(48, 80), resize_mode="squash"),
]


@pytest.mark.parametrize("config", [*CONFIGS, replace(SQUARE, resize_mode="longest"), PreprocessCfg(size=(48, 80))])
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_is_open_clips_transform(config: PreprocessCfg, shape: tuple[int, int]) -> None:
    image = noise(*shape)
    np.testing.assert_array_equal(preprocess.exact(config)(image), open_clips(image, config))


def width_first(image: Image.Image, config: PreprocessCfg) -> Pixels:
    """Resizing as before Pillow 13, by which the published vectors were made: first the width, then the height.

    Pillow 13 resizes the height first if it shrinks much more than the width, and many pixels differ by one level.
    """
    step = image_transform_v2(config, is_train=False).transforms[0]
    width, height = step(image).size
    filter = Image.Resampling.BILINEAR if config.interpolation == "bilinear" else Image.Resampling.BICUBIC
    resized = image.resize((width, image.height), filter).resize((width, height), filter)
    return preprocess.exact(config)(resized)  # it only crops: the size is right already


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fast_differs_by_one_level_in_few_pixels(config: PreprocessCfg, shape: tuple[int, int]) -> None:
    image = noise(*shape)
    crop = preprocess.fast(config)
    assert crop is not None
    pixels = crop(image)
    expected = width_first(image, config)
    assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == (expected.shape, np.uint8, True)
    off = np.abs(pixels.astype(int) - expected)
    assert off.max() <= (1 if min(shape) >= 300 else 2)  # enlarged noise overshoots
    assert (off > 0).mean() < 0.02


def test_a_step_that_torch_cannot_do_is_done_exactly() -> None:
    padded = replace(SQUARE, resize_mode="longest")
    assert preprocess.fast(padded) is None
    assert preprocess.choose(padded, "fast", "bf16")[1] == "exact"


@pytest.mark.parametrize(
    ("resize", "precision", "picked"),
    [
        ("auto", "fp32", "exact"),
        ("auto", "bf16", "fast"),
        ("auto", "fp16", "fast"),
        ("exact", "bf16", "exact"),
        ("fast", "fp32", "fast"),
    ],
)
def test_auto_is_exact_at_fp32(resize: str, precision: str, picked: str) -> None:
    assert preprocess.choose(SQUARE, resize, precision)[1] == picked


def test_vectors_of_the_other_resizing_have_another_fingerprint_and_hardly_differ() -> None:
    exact, fast = (
        ClipModel(parse_model("emoji-mini"), Settings(precision="fp32", resize=resize)) for resize in ("exact", "fast")
    )
    assert exact.fingerprint != fast.fingerprint
    image = noise(640, 480).resize((64, 48)).resize((640, 480))  # not only noise
    a, b = (clip.embed_images([clip.preprocess(image)]).result()[0] for clip in (exact, fast))
    assert cosine(a, b[None])[0] > 0.9999


def test_an_unknown_end_of_open_clips_transform_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = SimpleNamespace(transforms=[1, "two"])
    monkeypatch.setattr(preprocess, "image_transform_v2", lambda config, is_train: steps)
    with pytest.raises(RuntimeError, match=r"open_clip's transform ends in \['int', 'str'\], not in MaybeConvertMode"):
        preprocess.exact(SQUARE)
