"""Towers in fewer operations: they compute what open_clip computes, and what is not of the plain kind is left to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import Transformer
from torch import nn

from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import normalise
from clip_queue.worker.inference.blocks import Blocks
from clip_queue.worker.inference.clip_model import ClipModel, load
from clip_queue.worker.inference.image_tower import AttentionPool, Patches
from clip_queue.worker.inference.linear import SMALL, Linear
from tests.checkpoints import VISION, tiny_checkpoint

SCALED = {"ls_init_value": 0.1}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}

# A model's configuration, and what stands in its image tower and its text tower.
MODELS: dict[str, tuple[dict[str, Any], type, type]] = {
    "CLIP": ({}, Blocks, Blocks),
    "more blocks": ({"vision_cfg": {**VISION, "layers": 3}}, Blocks, Blocks),
    "quick GELU": ({"quick_gelu": True}, Blocks, Blocks),
    "ResNet": ({"vision_cfg": RESNET}, AttentionPool, Blocks),
    "text tower of its own": ({"custom_text": True, "quick_gelu": True}, Blocks, Blocks),
    "its end token's place": ({"custom_text": True, "text": {"pool_type": "eos", "eos_id": 49407}}, Blocks, Blocks),
    "layer scale": ({"vision_cfg": {**VISION, **SCALED}, "text": SCALED}, Transformer, Transformer),
    "mean of all places": ({"vision_cfg": {**VISION, "pool_type": "avg"}}, Transformer, Blocks),
    "normed queries": ({"vision_cfg": {**VISION, "qk_norm": True}}, Transformer, Blocks),
    "not causal": ({"custom_text": True, "text": {"no_causal_mask": True, "pool_type": "last"}}, Blocks, Transformer),
}  # fmt: skip


def part(clip: ClipModel) -> tuple[Any, Any]:
    """What computes a model's attention, of images and of texts."""
    model: Any = clip._model
    visual, text = model.visual, getattr(model, "text", model)
    return getattr(visual, "attnpool", None) or visual.transformer, text.transformer


@torch.inference_mode()
def of_open_clip(source: str, clip: ClipModel, pixels: list[np.ndarray], texts: list[str]) -> tuple[Any, Any]:
    model, name = load(parse_model(f"m={source}"), None)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.config.mean, clip.config.std))
    images = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - mean) / std
    tokens = open_clip.get_tokenizer(name)(texts, context_length=clip.tokenizer.context_length)
    return model.eval().encode_image(images).numpy(), model.encode_text(tokens).numpy()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_are_open_clips(tmp_path: Path, name: str, precision: str) -> None:
    options, image_part, text_part = MODELS[name]
    source = f"local-dir:{tiny_checkpoint(tmp_path / 'tiny', **options)}"
    clip = ClipModel(parse_model(f"m={source}"), Settings(device="cpu", precision=precision))
    assert tuple(map(type, part(clip))) == (image_part, text_part)
    pixels = list(np.random.default_rng(0).integers(0, 255, (3, *clip.image_size, 3), dtype=np.uint8))
    texts = ["a", "a photo of a cat", "seven short words and nothing more here"]
    images, texts_ = of_open_clip(source, clip, pixels, texts)
    for found, wanted in (
        (clip.embed_images(pixels).result(), images),
        (clip.embed_texts([clip.tokenizer(text) for text in texts]).result(), texts_),
    ):
        if precision == "fp32":
            np.testing.assert_allclose(normalise(found), normalise(wanted), atol=2e-6)
        assert (normalise(found) * normalise(wanted)).sum(axis=1).min() > 0.9995


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, nn.GELU(), nn.SiLU(), nn.GELU(approximate="tanh"), nn.ReLU()])
@pytest.mark.parametrize("large", [False, True])
def test_a_packed_layer_is_the_layer(dtype: torch.dtype, activation: nn.Module | None, large: bool) -> None:
    torch.manual_seed(0)
    width = 512 if large else 24
    assert (width * width >= SMALL) is large
    plain = nn.Linear(width, width).to(dtype).requires_grad_(False)
    layer = Linear(plain.weight, plain.bias, activation)
    for rows in (1, 5, 130):
        x, residual = torch.randn(2, rows, width).to(dtype)
        wanted = plain(x)
        near = {"rtol": 0.0, "atol": 4e-2 if dtype == torch.bfloat16 else 2e-5}
        torch.testing.assert_close(layer(x), activation(wanted) if activation else wanted, **near)
        if activation is None:
            before = residual.clone()
            torch.testing.assert_close(layer.added_to(residual, x), wanted + before, **near)
            torch.testing.assert_close(residual, before, rtol=0, atol=0)


def test_the_bytes_of_a_packed_layer_do_not_depend_on_what_ran_before() -> None:
    plain = nn.Linear(96, 288).to(torch.bfloat16).requires_grad_(False)
    layer, x = Linear(plain.weight, plain.bias), torch.randn(40, 96).to(torch.bfloat16)
    before = layer(x)
    for rows in (1, 1000, 7):
        layer(torch.randn(rows, 96).to(torch.bfloat16))
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("patch", "size"), [((32, 32), (64, 96)), ((4, 8), (16, 24)), ((7, 7), (30, 15))])
def test_patches_are_those_of_the_convolution(
    dtype: torch.dtype, bias: bool, order: Any, patch: tuple[int, int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 24, patch, patch, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(2, 3, *size).to(dtype).to(memory_format=order)
    patches = Patches.of(conv)
    assert patches
    torch.testing.assert_close(patches(x), conv(x), rtol=0, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_convolutions_of_other_kinds_stay() -> None:
    assert Patches.of(nn.Conv2d(3, 8, 4, 2)) is None, "patches that overlap"
    assert Patches.of(nn.Conv2d(3, 8, 4, 4, padding=2)) is None
    assert Patches.of(nn.Conv2d(4, 8, 4, 4, groups=2)) is None
    assert Patches.of(nn.Conv2d(3, 8, 4, 4, device="meta")) is None, "on another device"
    assert Patches.of(nn.Conv2d(3, 8, 4, 4, dilation=2)) is None, "patches with holes"
