"""The model's configuration, its text tower over trimmed texts, and its export to open_clip's form."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from training.augment import MEAN, STD
from training.texts import CONTEXT_LENGTH

VOCABULARY_SIZE = 49408
CONFIG = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 20, "head_width": 32},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": VOCABULARY_SIZE,
            "width": 96,
            "heads": 3,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"},
}
IMAGE_SIZE = 64


def new_model(words: int) -> open_clip.CLIP:
    """The model with random weights, its text tower over `words` dense token numbers."""
    config = CONFIG["model_cfg"]
    return open_clip.CLIP(**{**config, "text_cfg": {**config["text_cfg"], "vocab_size": words}})


def encode_images(tower: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Normalised pixels [B, 3, 64, 64] → unit vectors float32 [B, D]; convolutions in bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        features = tower(pixels.contiguous(memory_format=torch.channels_last))
    return functional.normalize(features.float(), dim=-1)


def encode_texts(model: open_clip.CLIP, tokens: Tensor, ends: Tensor) -> Tensor:
    """Token numbers [B, L] with L ≤ CONTEXT_LENGTH, ends [B] → unit vectors [B, D].

    The tower is causal, so what follows a text's end does not matter: the shorter half goes apart, trimmed.
    """
    order = ends.argsort()
    parts = [_trimmed(model, tokens[part], ends[part]) for part in order.tensor_split(2)]
    return functional.normalize(torch.cat(parts)[order.argsort()] @ model.text_projection, dim=-1)


def _trimmed(model: open_clip.CLIP, tokens: Tensor, ends: Tensor) -> Tensor:
    """The tower's state at each text's end: [B, width]."""
    tokens = tokens[:, : int(ends.max()) + 1]
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    return hidden[torch.arange(len(tokens)), ends]


def export(state: Mapping[str, Tensor], known: np.ndarray, folder: Path) -> None:
    """Write a state over dense token numbers as an open_clip `local-dir:` folder in fp16, file by file aside.

    known: int64 [K], the tokenizer's number of each dense number; every other token gets the vector of
    dense number 0, the unknown word.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = state["token_embedding.weight"]
    full = table[0].expand(VOCABULARY_SIZE, -1).clone()
    full[torch.from_numpy(known)] = table
    weights = {**state, "token_embedding.weight": full}
    weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in weights.items()}
    aside = folder / ".open_clip_model.part"
    save_file(weights, aside)
    aside.chmod(0o644)
    aside.replace(folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
