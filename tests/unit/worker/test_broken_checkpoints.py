"""A checkpoint that cannot be served ends the start with a line that says why; none is served with other weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from clip_queue.shared.models import ModelSpec
from clip_queue.shared.settings import Settings
from clip_queue.shared.startup import CannotWork
from clip_queue.worker.inference import clip_model
from clip_queue.worker.inference.clip_model import ClipModel
from tests.checkpoints import tiny_checkpoint

WEIGHTS = "open_clip_model.safetensors"


def model(source: str, **settings: Any) -> ClipModel:
    return ClipModel(ModelSpec("x", source), Settings(device="cpu", precision="fp32", **settings))


def configured(**preprocess: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "open_clip_config.json"
        config = json.loads(path.read_text())
        config["preprocess_cfg"].update(preprocess)
        path.write_text(json.dumps(config))

    return change


def weighed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS)

    return rewrite


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


BROKEN = [
    (no_weights, "has no weights (open_clip_model.safetensors)"),
    (lambda folder: (folder / "open_clip_config.json").unlink(), "has no open_clip_config.json"),
    (lambda folder: (folder / WEIGHTS).write_bytes(b"<html>"), "Error"),
    (weighed(lambda weights: weights.pop("positional_embedding")), "positional_embedding"),
    (weighed(lambda weights: weights.update(text_projection=torch.zeros(3, 3))), "size mismatch for text_projection"),
    (weighed(lambda weights: weights["text_projection"].fill_(torch.nan)), "its vectors are not finite at fp32"),
    (weighed(lambda weights: weights["visual.proj"].fill_(torch.inf)), "its vectors are not finite at fp32"),
    (configured(mean="grey"), "preprocess_cfg's mean is not three numbers"),
    (configured(mean=0.5), "preprocess_cfg's mean is not three numbers"),
    (configured(std=[0.2, 0.0, 0.2]), "preprocess_cfg's std is not three numbers above 0"),
    (configured(mode="L"), "preprocess_cfg's mode 'L' is not supported"),
]


@pytest.mark.parametrize(("broken", "why"), BROKEN)
def test_it_is_refused_in_a_line_that_says_why(broken: Callable[[Path], None], why: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    broken(folder)
    with pytest.raises(CannotWork, match=r"^CLIP_QUEUE_MODELS: x=local-dir:\S+ cannot be loaded: ") as caught:
        model(f"local-dir:{folder}")
    assert why in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_repository_of_the_hub_without_its_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint(tmp_path)
    no_weights(folder)
    create = open_clip.create_model

    def without_network(source: str, **options: Any) -> Any:
        return create(source.replace("hf-hub:org/name", f"local-dir:{folder}"), **options)

    monkeypatch.setattr(clip_model.open_clip, "create_model", without_network)
    with pytest.raises(CannotWork, match="its weights could not be fetched: is the hub reachable"):
        model("hf-hub:org/name")


def test_features_of_coca_are_raw_as_those_of_all() -> None:
    coca = model("coca_ViT-B-32/random")
    pixels = np.random.default_rng(1).integers(0, 255, (2, 224, 224, 3)).astype(np.uint8)
    images = coca.embed_images(list(pixels)).result()
    texts = coca.embed_texts([coca.tokenizer(text) for text in ("a cat", "two dogs")]).result()
    for features in (images, texts):
        assert not np.allclose(np.linalg.norm(features, axis=1), 1, atol=0.01)
