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
from clip_queue.worker.inference import linear
from clip_queue.worker.inference.blocks import Blocks
from clip_queue.worker.inference.clip_model import ClipModel, load
from clip_queue.worker.inference.image_tower import AttentionPool, Patches, lighten
from clip_queue.worker.inference.libraries import VisionTransformer
from clip_queue.worker.inference.linear import FEW, SMALL, Linear
from clip_queue.worker.inference.traced import traced
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
@pytest.mark.parametrize("both", [False, True])
def test_a_packed_layer_is_the_layer(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, activation: nn.Module | None, large: bool, both: bool
) -> None:
    torch.manual_seed(0)
    two_orders(monkeypatch, both)
    width = 512 if large else 24
    assert (width * width >= SMALL) is large
    plain = nn.Linear(width, width).to(dtype).requires_grad_(False)
    layer = Linear(plain.weight, plain.bias, activation)
    for rows in (1, 5, FEW, FEW + 1, 130):
        x, residual = torch.randn(2, rows, width).to(dtype)
        wanted = plain(x)
        near = {"rtol": 0.0, "atol": 4e-2 if dtype == torch.bfloat16 else 2e-5}
        torch.testing.assert_close(layer(x), activation(wanted) if activation else wanted, **near)
        if activation is None:
            before = residual.clone()
            torch.testing.assert_close(layer.added_to(residual, x), wanted + before, **near)
            torch.testing.assert_close(residual, before, rtol=0, atol=0)


def two_orders(monkeypatch: pytest.MonkeyPatch, worth: bool) -> None:
    """A CPU on which many rows are multiplied faster by MKL, or one on which they are not, whatever this one is."""
    fp32 = torch.float32
    monkeypatch.setattr(linear, "_worth_transposing", lambda w: worth and w.dtype == fp32 and w.numel() >= SMALL)


def held(layer: Linear) -> tuple[bool, bool]:
    """Whether it has its weights as they are, or transposed, and in oneDNN's order."""
    return layer._weight.numel() > 0, layer._packed is not None


@pytest.mark.skipif(not linear._worth_packing(torch.empty(512, 512)), reason="needs oneDNN")
def test_weights_are_held_in_the_orders_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, small, half = torch.randn(512, 1024), torch.randn(64, 32), torch.randn(512, 1024).to(torch.bfloat16)
    two_orders(monkeypatch, False)
    assert held(Linear(weight, None)) == held(Linear(weight, None, None, FEW + 1)) == (False, True)
    two_orders(monkeypatch, True)
    assert held(Linear(weight, None)) == held(Linear(weight, None, None, FEW)) == (True, True)
    many = Linear(weight, None, None, FEW + 1)
    assert held(many) == (True, False)
    assert torch.equal(many._weight, weight)
    assert many._weight.t().is_contiguous()
    assert held(Linear(small, None)) == (True, False)
    if linear._worth_packing(half):
        assert held(Linear(half, None, None, FEW + 1)) == (False, True)


@pytest.mark.parametrize(
    ("vendor", "family", "model", "halves"),
    [
        ("AuthenticAMD", 23, 1, True),  # EPYC 7001
        ("AuthenticAMD", 23, 24, True),
        ("AuthenticAMD", 23, 49, False),  # EPYC 7002
        ("AuthenticAMD", 25, 1, False),
        ("HygonGenuine", 24, 1, True),
        ("GenuineIntel", 6, 1, False),
    ],
)
def test_a_first_zen_is_known(tmp_path: Path, vendor: str, family: int, model: int, halves: bool) -> None:
    one = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: A CPU 1\n"
    (tmp_path / "cpuinfo").write_text(f"{one}flags\t\t: fpu\n\n" * 2)
    assert linear._computes_halves(tmp_path / "cpuinfo") is halves


@pytest.mark.parametrize("text", [None, "", "Processor\t: ARMv8\nCPU part\t: 0xd0c\n", "vendor_id : AuthenticAMD\n"])
def test_a_cpu_that_does_not_say_is_not(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert not linear._computes_halves(tmp_path / "cpuinfo")


def test_only_large_weights_at_fp32_are_worth_transposing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    large, small = torch.empty(512, 512), torch.empty(24, 24)
    for halves in (False, True):
        monkeypatch.setattr(linear, "_computes_halves", lambda halves=halves: halves)
        assert linear._worth_transposing(large) is not halves
        assert not linear._worth_transposing(small)
        assert not linear._worth_transposing(large.to(torch.bfloat16))
    monkeypatch.setattr(linear, "_computes_halves", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True})
    assert not linear._worth_transposing(large)


def test_a_tower_as_one_call_takes_the_order_by_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of few rows has the branch for many."""
    two_orders(monkeypatch, True)
    torch.manual_seed(0)
    layer = Linear(torch.randn(512, 512), torch.randn(512), nn.GELU())

    def tower(x: torch.Tensor) -> torch.Tensor:
        return layer.added_to(x, layer(x))

    one_call = traced(tower, layer, torch.randn(3, 512), torch.randn(2, 512))
    assert isinstance(one_call, torch.jit.ScriptModule)
    asked: list[int] = []
    for rows in (2, FEW + 1, 1):
        x = torch.randn(rows, 512)
        assert torch.equal(one_call(x), tower(x))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            one_call(x)
        asked.append(sum("mkldnn::_linear_pointwise" in event.key for event in seen.key_averages()))
    if layer._packed is not None:
        assert asked[0] > 0
        assert asked[1] == 0
        assert asked[2] > 0


@pytest.mark.parametrize(("size", "places"), [(224, 50), (352, 122)])
def test_layers_of_an_image_tower_know_how_many_places_it_has(
    monkeypatch: pytest.MonkeyPatch, size: int, places: int
) -> None:
    """Only the last block goes on with one place of each image."""
    told: list[tuple[int, int]] = []

    class Noted(Linear):
        def __init__(self, weight: Any, bias: Any, activation: nn.Module | None = None, least: int = 1) -> None:
            told.append((weight.shape[0], least))
            super().__init__(weight, bias, activation, least)

    tower = VisionTransformer(size, 32, width=64, layers=2, heads=2, mlp_ratio=4.0, output_dim=32)
    lighten(tower.requires_grad_(False), Noted)
    block = [(64, places), (256, places), (64, places), (192, places)]
    last = [(64, 1), (256, 1), (64, 1), (64, 1), (128, places)]
    assert told == [*block, *last, (64, 1)]


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
