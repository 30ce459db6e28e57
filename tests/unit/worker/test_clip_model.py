"""Models: where they are loaded from, the automatic settings, and the shapes of what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from clip_queue.shared.models import CATALOGUE, parse_model
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import normalise
from clip_queue.worker.inference.clip_model import (
    ClipModel,
    PendingFeatures,
    load,
    public_source,
)

FP32 = Settings(device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def emoji() -> ClipModel:
    return ClipModel(CATALOGUE["emoji-mini"], FP32)


def pixels(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (count, *size, 3), dtype=np.uint8))


def test_a_model_tells_what_it_is(emoji: ClipModel) -> None:
    info = emoji.info
    assert (info.name, info.source, info.precision, info.resize) == (
        "emoji-mini",
        "shipped:emoji-mini",
        "fp32",
        "exact",
    )
    assert (info.dimension, info.context_length, info.image_size, info.jpeg_draft) == (128, 32, (64, 64), 0.0)
    assert len(info.fingerprint) == 16
    assert int(info.fingerprint, 16) >= 0


def test_the_logit_scale_is_that_of_training_whatever_the_precision(emoji: ClipModel) -> None:
    assert emoji.logit_scale == pytest.approx(25.2422, abs=1e-3)
    rounded = ClipModel(CATALOGUE["emoji-mini"], Settings(device="cpu", precision="bf16"))
    assert rounded.logit_scale == emoji.logit_scale


def test_images_are_embedded_alone_as_in_a_batch(emoji: ClipModel) -> None:
    images = pixels(3, emoji.image_size)
    together = emoji.embed_images(images).result()
    assert (together.shape, together.dtype) == ((3, 128), np.float32)
    alone = np.concatenate([emoji.embed_images([image]).result() for image in images])
    np.testing.assert_allclose(normalise(alone), normalise(together), atol=1e-5)
    stacked = emoji.stack(images)
    assert (tuple(stacked.shape), stacked.dtype) == ((3, 64, 64, 3), torch.uint8)
    np.testing.assert_array_equal(emoji.embed_stack(stacked).result(), together)


def test_a_jpeg_draft_is_a_multiple_of_the_image_size_and_changes_the_fingerprint(emoji: ClipModel) -> None:
    drafted = ClipModel(CATALOGUE["emoji-mini"], Settings(device="cpu", precision="fp32", jpeg_draft=2))
    assert (emoji.draft, drafted.draft, drafted.info.jpeg_draft) == (0, 128, 2.0)
    assert drafted.fingerprint != emoji.fingerprint


def test_random_weights_are_the_same_each_time() -> None:
    spec = parse_model("m=RN50/random")
    models = [load(spec, None) for _ in range(2)]
    assert [name for _, name in models] == ["RN50", "RN50"]
    first, second = (model.state_dict() for model, _ in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_architecture_and_a_tag_are_open_clips_pretrained_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, dict[str, object]]] = []

    def create_model(name: str, **options: object) -> str:
        calls.append((name, options))
        return "model"

    monkeypatch.setattr(open_clip, "create_model", create_model)
    assert load(parse_model("m=ViT-B-32/openai"), tmp_path) == ("model", "ViT-B-32")
    assert load(parse_model("m=hf-hub:org/repo"), tmp_path) == ("model", "hf-hub:org/repo")
    assert calls == [
        ("ViT-B-32", {"pretrained": "openai", "cache_dir": str(tmp_path), "require_pretrained": True}),
        ("hf-hub:org/repo", {"cache_dir": str(tmp_path), "require_pretrained": True}),
    ]


def test_a_source_without_a_model_is_an_error_of_open_clip(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load(parse_model(f"m=local-dir:{tmp_path}"), None)
    with pytest.raises(RuntimeError, match="no-such"):
        load(parse_model("m=no-such/random"), None)


def test_of_a_local_path_clients_see_the_last_part_only() -> None:
    assert public_source("local-dir:/home/someone/models/mine") == "local-dir:mine"
    assert public_source("ViT-B-32/openai") == "ViT-B-32/openai"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_on_a_gpu_are_copied_to_the_host() -> None:
    features = torch.arange(6, device="cuda", dtype=torch.float16).reshape(2, 3)
    result = PendingFeatures(features).result()
    np.testing.assert_array_equal(result, np.arange(6, dtype=np.float32).reshape(2, 3))
