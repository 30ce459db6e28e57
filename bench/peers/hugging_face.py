"""An open_clip model as a folder that Hugging Face's ``transformers`` loads as the same CLIP: nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.common import VIT
from clip_queue.shared.models import parse_model
from clip_queue.worker.inference.clip_model import load
from clip_queue.worker.inference.libraries import open_clip

NORMS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def write(folder: Path) -> None:
    """ViT-B/32 with the random weights that clip-queue's tag ``random`` gives."""
    model, _ = load(parse_model(VIT), None)
    vision: dict[str, Any] = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    vision |= {"patch_size": 32, "image_size": 224, "num_hidden_layers": 12, "hidden_act": "quick_gelu"}
    text: dict[str, Any] = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
    text |= {"num_hidden_layers": 12, "vocab_size": 49408, "hidden_act": "quick_gelu", "eos_token_id": 49407}
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 512}
    size = {"do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True}
    size |= {"crop_size": {"height": 224, "width": 224}, "do_convert_rgb": True, "image_mean": MEAN, "image_std": STD}
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in tokenizer.encoder.items()}
    merges = "\n".join(" ".join(pair) for pair in tokenizer.bpe_ranks)
    files = {
        "config.json": config | {"vision_config": vision, "text_config": text},
        "preprocessor_config.json": size | {"image_processor_type": "CLIPImageProcessor"},
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
        "vocab.json": vocabulary,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    save_file(weights(model.state_dict()), folder / "model.safetensors", {"format": "pt"})


def weights(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of an open_clip ViT by the names of ``transformers``."""
    out = {
        "logit_scale": own["logit_scale"],
        "visual_projection.weight": own["visual.proj"].T,
        "text_projection.weight": own["text_projection"].T,
        "vision_model.embeddings.class_embedding": own["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": own["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": own["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": own["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": own["positional_embedding"],
    }
    for ours, theirs in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ):
        for kind in ("weight", "bias"):
            out[f"{theirs}.{kind}"] = own[f"{ours}.{kind}"]
    for name, tensor in own.items():
        before, found, rest = name.partition("transformer.resblocks.")
        if not found:
            continue
        number, _, rest = rest.partition(".")
        part, _, kind = rest.rpartition(".")
        layer = f"{'vision' if before else 'text'}_model.encoder.layers.{number}"
        if part == "attn":  # in_proj_weight, in_proj_bias: queries, keys and values in one
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{layer}.self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}"] = third
        else:
            out[f"{layer}.{NORMS.get(part, part.replace('attn', 'self_attn'))}.{kind}"] = tensor
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}
