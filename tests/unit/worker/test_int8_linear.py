"""int8: near to fp32, the same alone and in a batch, and what is not finite stays so."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clip_queue.shared.models import CATALOGUE, parse_model
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import normalise
from clip_queue.worker.inference import int8_linear
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.int8_linear import STEPS, Int8Linear, steps
from tests.checkpoints import tiny_checkpoint

pytestmark = pytest.mark.skipif(not steps(), reason="needs a CPU with AVX2")

RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}


@pytest.fixture(params=STEPS, autouse=True)
def number(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The steps of this CPU, and those of one without VNNI."""
    if request.param > steps():
        pytest.skip("needs a CPU with VNNI")
    monkeypatch.setattr(int8_linear, "steps", lambda: request.param)
    return int(request.param)


def layers(
    inner: int, outer: int, bias: bool = True, activation: nn.Module | None = None
) -> tuple[nn.Linear, Int8Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(inner, outer, bias=bias).requires_grad_(False)
    return plain, Int8Linear(plain.weight, plain.bias if bias else None, activation)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, nn.GELU(), nn.SiLU()])
@pytest.mark.parametrize(("inner", "outer"), [(768, 3072), (100, 7), (33, 64)])
def test_a_layer_is_near_the_layer(inner: int, outer: int, bias: bool, activation: nn.Module | None) -> None:
    plain, layer = layers(inner, outer, bias, activation)
    for rows in (1, 5, 130):
        x = torch.randn(rows, inner) * torch.logspace(-3, 3, rows)[:, None]
        wanted = plain(x) if activation is None else activation(plain(x))
        assert nn.functional.cosine_similarity(layer(x), wanted).min() > 0.999
        if activation is None:
            residual = torch.randn(rows, outer)
            torch.testing.assert_close(layer.added_to(residual, x), residual + layer(x), rtol=1e-5, atol=1e-5)


def test_a_row_depends_on_no_other_row() -> None:
    _, layer = layers(96, 64)
    x = torch.randn(40, 96)
    alone = torch.cat([layer(row[None]) for row in x])
    beside = layer(torch.cat([x, 1e6 * torch.randn(7, 96)]))[:40]
    assert torch.equal(alone, beside)


def test_what_is_not_finite_stays_so_in_its_row_only() -> None:
    plain, layer = layers(64, 32)
    x = torch.randn(4, 64)
    x[1, 5], x[2, 6] = float("nan"), float("inf")
    y = layer(x)
    assert torch.isfinite(y).all(dim=1).tolist() == [True, False, False, True]
    torch.testing.assert_close(layer(torch.zeros(2, 64)), plain.bias.expand(2, -1))


@pytest.mark.parametrize(("inner", "outer"), [(3072, 768), (768, 3072), (100, 7), (33, 64), (2, 1)])
def test_the_largest_sums_do_not_overflow(inner: int, outer: int) -> None:
    plain = nn.Linear(inner, outer).requires_grad_(False)
    for sign in (1, -1):
        layer = Int8Linear(plain.weight.fill_(sign), plain.bias)
        for rows in (1, 2, 33, 130):
            torch.testing.assert_close(layer(torch.ones(rows, inner)), plain(torch.ones(rows, inner)))


def test_an_input_of_one_sign_has_all_the_steps(number: int) -> None:
    layer = Int8Linear(torch.eye(512), None)
    for x in (torch.rand(20, 512), -torch.rand(20, 512), torch.rand(20, 512) - 0.2):
        step = (x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)) / number
        assert ((layer(x) - x).abs().amax(1) <= step * 0.501).all()


def test_with_less_than_vnni_there_are_fewer_steps() -> None:
    program = "from clip_queue.worker.inference.int8_linear import steps; print(steps())"
    for instructions, wanted in (("AVX2", STEPS[1]), ("DEFAULT", steps())):
        env = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
        found = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True, timeout=120)
        assert int(found.stdout) == wanted


def test_weights_of_zero_give_the_bias() -> None:
    layer = Int8Linear(torch.zeros(8, 16), torch.arange(8.0))
    assert torch.equal(layer(torch.randn(3, 16)), torch.arange(8.0).expand(3, -1))


@pytest.mark.parametrize("name", ["emoji-mini", "ViT", "quick GELU"])
def test_vectors_are_near_those_of_fp32_and_the_same_in_any_batch(tmp_path: Path, name: str) -> None:
    spec = CATALOGUE["emoji-mini"]
    if name != "emoji-mini":
        options = {"quick_gelu": True} if name == "quick GELU" else {}
        spec = parse_model(f"m=local-dir:{tiny_checkpoint(tmp_path / 'tiny', **options)}")
    exact, clip = (ClipModel(spec, Settings(device="cpu", precision=p, resize="exact")) for p in ("fp32", "int8"))
    assert isinstance(clip._texts, torch.jit.ScriptModule), "recorded as one call"
    assert isinstance(clip._images, torch.jit.ScriptModule)
    assert clip.info.precision == "int8"
    assert clip.fingerprint != exact.fingerprint
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (*clip.image_size, 3), dtype=np.uint8) for _ in range(9)]
    tokens = [clip.tokenizer(text) for text in ("a cat", "two dogs on a red table", "the sea at night", "rain")]
    for kind, items in (("images", pixels), ("texts", tokens)):
        embed = getattr(clip, f"embed_{kind}")
        together = normalise(embed(items).result())
        alone = normalise(np.concatenate([embed([item]).result() for item in items]))
        assert (alone * together).sum(axis=1).min() > 0.9999, kind
        assert (together * normalise(getattr(exact, f"embed_{kind}")(items).result())).sum(axis=1).min() > 0.999


def test_of_a_resnet_images_are_those_of_fp32_and_it_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny_checkpoint(tmp_path / "tiny", vision_cfg=RESNET)
    with caplog.at_level(logging.WARNING):
        exact, clip = (
            ClipModel(parse_model(f"m=local-dir:{source}"), Settings(device="cpu", precision=p, resize="exact"))
            for p in ("fp32", "int8")
        )
    assert "m: int8 is for transformers; images are computed at fp32" in caplog.text
    pixels = list(np.random.default_rng(0).integers(0, 256, (3, *clip.image_size, 3), dtype=np.uint8))
    assert np.array_equal(clip.embed_images(pixels).result(), exact.embed_images(pixels).result())
