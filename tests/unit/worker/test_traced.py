"""Towers as one call: the same bits for any batch, without Python's lock; what cannot be one call stays as it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clip_queue.shared.models import CATALOGUE, parse_model
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.traced import Tower, traced
from tests.checkpoints import VISION, tiny_checkpoint

RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}
MODELS: dict[str, dict[str, Any] | None] = {
    "emoji-mini": None,  # the one that ships
    "ViT": {},
    "ResNet": {"vision_cfg": RESNET},
    "mean of all places": {"vision_cfg": {**VISION, "pool_type": "avg"}},
    "layer scale": {"vision_cfg": {**VISION, "ls_init_value": 0.1}, "text": {"ls_init_value": 0.1}},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_one_call_computes_the_same_bits(tmp_path: Path, name: str, precision: str) -> None:
    options = MODELS[name]
    spec = CATALOGUE["emoji-mini"]
    if options is not None:
        spec = parse_model(f"m=local-dir:{tiny_checkpoint(tmp_path / 'tiny', **options)}")
    clip = ClipModel(spec, Settings(device="cpu", precision=precision))
    assert isinstance(clip._images, torch.jit.ScriptModule)
    assert isinstance(clip._texts, torch.jit.ScriptModule)
    random = np.random.default_rng(0)
    with torch.inference_mode():
        for rows in (3, 1, 17, 2, 64, 1):
            stack = torch.from_numpy(random.integers(0, 256, (rows, *clip.image_size, 3), dtype=np.uint8))
            assert torch.equal(clip._images(stack), clip.image_tower(stack)), rows
        words = ["a", "photo", "of", "seven", "cats", "and", "dogs", "on", "an", "old", "table", "in", "the", "rain"]
        for rows, longest in ((1, 1), (5, 9), (2, 3), (33, 5), (1, 13)):
            texts = [" ".join(random.choice(words, random.integers(1, longest + 1))) for _ in range(rows)]
            tokens = [clip.tokenizer.cut(text) for text in texts]
            batch = clip.padded(tokens, max(map(len, tokens)))
            assert torch.equal(clip._texts(batch), clip.text_tower(batch)), (rows, longest)


def test_a_tower_that_looks_at_its_padding_is_not_made_one_call(tmp_path: Path) -> None:
    text = {"no_causal_mask": True, "pool_type": "last"}
    source = f"local-dir:{tiny_checkpoint(tmp_path / 'tiny', custom_text=True, text=text)}"
    clip = ClipModel(parse_model(f"m={source}"), Settings(device="cpu"))
    assert clip._texts is clip.text_tower


def one_size(batch: torch.Tensor) -> torch.Tensor:
    return batch.view(int(batch.shape[0]), 1, -1).sum(1)


def by_what_it_sees(batch: torch.Tensor) -> torch.Tensor:
    return batch * 2 if batch.sum() > 3 else batch


def fails_when_recorded(batch: torch.Tensor) -> torch.Tensor:
    if torch.jit.is_tracing():
        raise NotImplementedError
    return batch * 2


def anew_each_time(batch: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(batch.numpy() * 2)  # recorded as a constant


@pytest.mark.parametrize("tower", [one_size, by_what_it_sees, fails_when_recorded, anew_each_time])
def test_what_cannot_be_one_call_stays_as_it_is(tower: Tower) -> None:
    assert traced(tower, nn.Module(), torch.ones(2, 3), torch.ones(1, 3)) is tower


def test_without_tracing_operations_are_called_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.jit, "trace")
    clip = ClipModel(CATALOGUE["emoji-mini"], Settings(device="cpu"))
    assert clip._images == clip.image_tower
    assert clip._texts is clip.text_tower
    assert np.isfinite(clip.embed_texts([clip.tokenizer("a cat")]).result()).all()


def calls(tower: Tower, batch: torch.Tensor) -> int:
    """How often Python calls something that is not Python in a pass: each operation of torch is such a call."""
    number = 0

    def count(_frame: object, event: str, _what: object) -> None:
        nonlocal number
        number += event == "c_call"

    tower(batch)
    sys.setprofile(count)
    try:
        tower(batch)
    finally:
        sys.setprofile(None)
    return number


def test_python_calls_one_thing_and_not_each_operation() -> None:
    """So a pass gives Python's lock away, and waits for it again, once."""
    clip = ClipModel(CATALOGUE["emoji-mini"], Settings(device="cpu"))
    tokens = clip.tokenizer("a cat")
    texts, images = clip.padded([tokens], len(tokens)), torch.zeros((1, *clip.image_size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert calls(clip._texts, texts) < 10 < calls(clip.text_tower, texts)
        assert calls(clip._images, images) < 10 < calls(clip.image_tower, images)
