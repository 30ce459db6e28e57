"""``clip-queue models``: the models that can be served, from their configuration files. It does not load torch."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from clip_queue.shared.models import CATALOGUE, RANDOM, SHIPPED, ModelSpec, parse_models
from clip_queue.shared.settings import Settings

# The repositories of the hub in which open_clip finds OpenAI's weights. A test compares them with open_clip's list.
OPENAI_REPOS = {
    "RN50": "timm/resnet50_clip.openai",
    "RN101": "timm/resnet101_clip.openai",
    "RN50x4": "timm/resnet50x4_clip.openai",
    "RN50x16": "timm/resnet50x16_clip.openai",
    "RN50x64": "timm/resnet50x64_clip.openai",
    "ViT-B-16": "timm/vit_base_patch16_clip_224.openai",
    "ViT-B-32": "timm/vit_base_patch32_clip_224.openai",
    "ViT-L-14": "timm/vit_large_patch14_clip_224.openai",
    "ViT-L-14-336": "timm/vit_large_patch14_clip_336.openai",
}


@dataclass(frozen=True)
class Facts:
    """Facts about a model that is not loaded; None: not known. ``local``: whether its weights are on this machine."""

    local: bool | None = None
    dimension: int | None = None
    context_length: int | None = None
    image_size: int | None = None


def table(settings: Settings) -> Table:
    """A table of all models that can be served, the configured ones first."""
    out = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, caption="* configured. Any other: NAME=SOURCE.", caption_justify="left"
    )
    out.add_column("model")
    out.add_column("source", overflow="fold")
    out.add_column("local")
    for number in ("dim", "tokens", "pixels"):
        out.add_column(number, justify="right")
    for spec, facts, configured in known(settings):
        local = {True: "[green]yes[/]", False: "no", None: "?"}[facts.local]
        numbers = ("?" if n is None else str(n) for n in (facts.dimension, facts.context_length, facts.image_size))
        name = f"[bold]{spec.name} *[/]" if configured else spec.name
        out.add_row(name, spec.source, local, *numbers)
    return out


def lines(settings: Settings) -> Iterator[str]:
    """Each of them as JSON: name, source, whether it is configured, and its facts, null where not known."""
    for spec, facts, configured in known(settings):
        yield json.dumps({"name": spec.name, "source": spec.source, "configured": configured, **asdict(facts)})


def known(settings: Settings) -> Iterator[tuple[ModelSpec, Facts, bool]]:
    """All models that can be served, the configured ones first, and whether they are."""
    configured, cache = parse_models(settings.models), hub_cache(settings)
    others = [spec for name, spec in CATALOGUE.items() if name not in configured]
    for spec in [*configured.values(), *others]:
        yield spec, facts_of(spec, cache), spec.name in configured


def facts_of(spec: ModelSpec, cache: Path) -> Facts:
    """The facts about a model. ``cache`` is the folder of :func:`hub_cache`."""
    if spec.source.startswith(SHIPPED):
        return _of_folder(_folder_of("clip_queue.worker") / "checkpoints" / spec.source.removeprefix(SHIPPED))
    if spec.source.startswith("local-dir:"):
        return _of_folder(Path(spec.source.removeprefix("local-dir:")).expanduser())
    if spec.source.startswith("hf-hub:"):
        found = snapshots(cache, spec.source.removeprefix("hf-hub:"))
        return _of_folder(found[-1]) if found else Facts(local=False)
    architecture, _, tag = spec.source.partition("/")
    repo = OPENAI_REPOS.get(architecture.removesuffix("-quickgelu")) if tag == "openai" else None
    local = True if tag == RANDOM else bool(snapshots(cache, repo)) if repo else None
    file = _folder_of("open_clip") / "model_configs" / f"{architecture}.json"
    return _read(file, local)


def hub_cache(settings: Settings) -> Path:
    """The folder in which the model hub's client keeps its downloads."""
    if settings.cache_dir:
        return settings.cache_dir
    caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    home = Path(os.environ.get("HF_HOME", caches / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def snapshots(cache: Path, repo: str) -> list[Path]:
    """The downloaded versions of a repository of the hub that have weights, the oldest first."""
    folder = cache / f"models--{repo.replace('/', '--')}" / "snapshots"
    weights = [f for f in folder.glob("*/open_clip_*") if f.suffix in (".safetensors", ".bin") and f.exists()]
    return sorted({f.parent for f in weights}, key=lambda f: f.stat().st_mtime)


def _of_folder(folder: Path) -> Facts:
    """The facts about a model in open_clip's ``local-dir:`` form."""
    local = any((folder / f"open_clip_{kind}").is_file() for kind in ("model.safetensors", "pytorch_model.bin"))
    return _read(folder / "open_clip_config.json", local)


def _read(file: Path, local: bool | None) -> Facts:
    """The facts in a configuration file of open_clip."""
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return Facts(local)
    config = config.get("model_cfg", config)
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    return Facts(local, config.get("embed_dim"), text.get("context_length", 77), vision.get("image_size", 224))


def _folder_of(package: str) -> Path:
    """The folder of a package, which is not imported. If it is not installed, a path that does not exist."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places else Path(os.devnull)
