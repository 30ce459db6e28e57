"""Which models can be served: their names, and where open_clip finds their architecture and weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from clip_queue.shared.errors import UnknownModel, Unreadable
from clip_queue.shared.fields import read

SHIPPED = "shipped:"  # a checkpoint inside this distribution
MAX_NAME = 200  # characters of a model's name
RANDOM = "random"  # a pretrained tag: seeded random weights, for measuring speed


@dataclass(frozen=True)
class ModelSpec:
    """``source`` is ``architecture/pretrained-tag``, ``hf-hub:org/repo``, ``local-dir:/path`` or ``shipped:name``."""

    name: str
    source: str


@dataclass(frozen=True)
class ModelInfo:
    """A model as a worker serves it. ``image_size`` is (height, width) in pixels; ``precision``, ``resize`` and
    ``jpeg_draft`` are the settings of these names, with ``auto`` replaced by the value that the worker chose."""

    name: str
    source: str
    fingerprint: str
    dimension: int
    context_length: int
    image_size: tuple[int, int]
    precision: str
    resize: str = "exact"
    jpeg_draft: float = 0.0

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> ModelInfo:
        """The model of a dictionary, as :func:`clip_queue.shared.fields.read` does it."""
        model = read(cls, raw)
        try:
            height, width = model.image_size
        except ValueError:
            raise Unreadable(f"field 'image_size' of ModelInfo is {model.image_size}") from None
        return replace(model, image_size=(height, width))


def _openai(architecture: str) -> str:
    return f"{architecture}-quickgelu/openai"  # OpenAI's weights were trained with QuickGELU


CATALOGUE: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("emoji-mini", SHIPPED + "emoji-mini"),
        ModelSpec("RN50", _openai("RN50")),
        ModelSpec("RN101", _openai("RN101")),
        ModelSpec("RN50x4", _openai("RN50x4")),
        ModelSpec("RN50x16", _openai("RN50x16")),
        ModelSpec("RN50x64", _openai("RN50x64")),
        ModelSpec("ViT-B-16", _openai("ViT-B-16")),
        ModelSpec("ViT-B-32", _openai("ViT-B-32")),
        ModelSpec("ViT-L-14", _openai("ViT-L-14")),
        ModelSpec("ViT-L-14-336px", _openai("ViT-L-14-336")),
    )
}

# Other names of the nine: OpenAI's own, and those of their repositories at Hugging Face. `clip/NAME` is known as well.
ALIASES: dict[str, str] = {
    "ViT-B/16": "ViT-B-16",
    "ViT-B/32": "ViT-B-32",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336px",
    "openai/clip-vit-base-patch16": "ViT-B-16",
    "openai/clip-vit-base-patch32": "ViT-B-32",
    "openai/clip-vit-large-patch14": "ViT-L-14",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336px",
    "sentence-transformers/clip-ViT-B-16": "ViT-B-16",
    "sentence-transformers/clip-ViT-B-32": "ViT-B-32",
    "sentence-transformers/clip-ViT-L-14": "ViT-L-14",
    "timm/resnet50_clip.openai": "RN50",
    "timm/resnet101_clip.openai": "RN101",
    "timm/resnet50x4_clip.openai": "RN50x4",
    "timm/resnet50x16_clip.openai": "RN50x16",
    "timm/resnet50x64_clip.openai": "RN50x64",
    "timm/vit_base_patch16_clip_224.openai": "ViT-B-16",
    "timm/vit_base_patch32_clip_224.openai": "ViT-B-32",
    "timm/vit_large_patch14_clip_224.openai": "ViT-L-14",
    "timm/vit_large_patch14_clip_336.openai": "ViT-L-14-336px",
}
LED = ":led"  # after a model's name: what the shards of runs that workers lead wait under
PREFIX = "clip/"  # before the name of a model in the ids of Roboflow Inference

# A warning that goes with each result of a model.
NOTICES: dict[str, str] = {
    "emoji-mini": "emoji-mini knows emoji pictures by their names and nothing of photographs; "
    "for photographs set CLIP_QUEUE_MODELS=ViT-B-16"
}


def parse_model(text: str) -> ModelSpec:
    """A model from a setting: a known name or a usual alias of it, or ``name=source``.

    Raises:
        ValueError: the text is neither. The message says what to write.
    """
    name, separator, source = text.partition("=")
    if not separator:
        if (known_as := ALIASES.get(name, name)) in CATALOGUE:
            return CATALOGUE[known_as]
        known = ", ".join(CATALOGUE)
        example = "my-b32=ViT-B-32/laion2b_s34b_b79k"
        raise ValueError(f"unknown model {name!r}: use one of {known}, or NAME=SOURCE, as in {example}")
    check_name(name, text)
    if not source.startswith(("hf-hub:", "local-dir:")) and "/" not in source:
        raise ValueError(f"source {source!r} of {name!r} must be ARCHITECTURE/TAG, hf-hub:ORG/REPO or local-dir:/PATH")
    return ModelSpec(name, source)


def parse_aliases(texts: Iterable[str]) -> dict[str, str]:
    """Other names of models from a setting, each ``alias=name``: the name by alias.

    Raises:
        ValueError: one is something else.
    """
    aliases: dict[str, str] = {}
    for text in texts:
        alias, _, name = text.partition("=")
        check_name(alias, text)
        if not name:
            raise ValueError(f"{text!r} must be ALIAS=MODEL, as in openai/clip-vit-base-patch32=ViT-B-32")
        if aliases.setdefault(alias, name) != name:
            raise ValueError(f"the alias {alias!r} stands there twice")
    return aliases


def check_name(name: str, text: str) -> None:
    """Raise :class:`ValueError` unless ``name``, in the setting ``text``, can be part of a queue's name and a key's."""
    if name.endswith(LED):
        raise ValueError(f"model name {name[:80]!r} in {text[:160]!r} must not end with {LED!r}")
    if not name or len(name) > MAX_NAME or any(c.isspace() or not c.isprintable() or c == "," for c in name):
        raise ValueError(f"model name {name[:80]!r} in {text[:160]!r} must be a word of visible characters without ','")


def parse_models(texts: Iterable[str]) -> dict[str, ModelSpec]:
    """The served models by name, in order. The first is the default.

    Raises:
        ValueError: one is no model, or two have the same name.
    """
    models: dict[str, ModelSpec] = {}
    for spec in map(parse_model, texts):
        if spec.name in models:
            raise ValueError(f"the name {spec.name!r} stands there twice: give each model a name of its own")
        models[spec.name] = spec
    return models


def check_known(name: str, *others: Iterable[str]) -> None:
    """Raise :class:`UnknownModel` (404) unless ``name`` is in the catalogue or among ``others``."""
    if name in CATALOGUE or any(name in group for group in others):
        return
    raise UnknownModel(f"Model {name[:80]!r} is not known here.")
