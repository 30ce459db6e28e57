"""Small models with random weights, in open_clip's ``local-dir:`` form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def tiny_checkpoint(folder: Path, *, text: dict[str, Any] | None = None, **model: Any) -> Path:
    """Write a model of 32 dimensions to ``folder``. ``text`` and ``model`` change its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": {**TEXT, **(text or {})}, **model}
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(7)
    built = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({name: t.contiguous() for name, t in built.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
