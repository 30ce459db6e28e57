"""``clip-queue models``: what is known of a model before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clip_queue.cli.main import app
from clip_queue.cli.models import OPENAI_REPOS, Facts, facts_of, hub_cache, table
from clip_queue.shared.models import CATALOGUE, ModelSpec
from clip_queue.shared.settings import Settings

run = CliRunner().invoke


def test_models_lists_the_configured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_MODELS", "ViT-B-32,mine=local-dir:/nowhere")
    monkeypatch.setenv("COLUMNS", "120")
    lines = run(app, ["models"]).output.splitlines()
    names = [line.split()[0] for line in lines if line.strip()][2:]
    assert names[:3] == ["ViT-B-32", "mine", "emoji-mini"]
    assert set(CATALOGUE) < set(names)
    assert table(Settings()).row_count == len(CATALOGUE) + 1


def test_models_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_MODELS", "mine=local-dir:/nowhere")
    found = [json.loads(line) for line in run(app, ["models", "--json"]).output.splitlines()]
    assert {k: found[0][k] for k in ("name", "source", "configured", "local")} == {
        "name": "mine",
        "source": "local-dir:/nowhere",
        "configured": True,
        "local": False,
    }
    shipped = next(each for each in found if each["name"] == "emoji-mini")
    assert (shipped["configured"], shipped["dimension"]) == (False, 128)
    assert {each["name"] for each in found} == {"mine", *CATALOGUE}


def test_facts_come_from_configuration_files(tmp_path: Path) -> None:
    shipped = facts_of(CATALOGUE["emoji-mini"], tmp_path)
    assert (shipped.local, shipped.dimension, shipped.context_length, shipped.image_size) == (True, 128, 32, 64)
    known = facts_of(CATALOGUE["ViT-L-14-336px"], tmp_path)
    assert (known.local, known.dimension, known.context_length, known.image_size) == (False, 768, 77, 336)
    assert facts_of(ModelSpec("x", "ViT-B-32/random"), tmp_path).local is True
    assert facts_of(ModelSpec("x", "ViT-B-32/laion2b_s34b_b79k"), tmp_path).local is None
    assert facts_of(ModelSpec("x", "hf-hub:org/repo"), tmp_path).local is False


def test_a_downloaded_model_is_seen(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--timm--vit_base_patch16_clip_224.openai" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_config.json").write_text("{}")
    assert facts_of(CATALOGUE["ViT-B-16"], tmp_path).local is False, "a configuration has no weights"
    (snapshot / "open_clip_model.safetensors").touch()
    assert facts_of(CATALOGUE["ViT-B-16"], tmp_path).local is True


def test_the_hub_cache_follows_its_clients_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hub_cache(Settings()) == Path("~/.cache/huggingface/hub").expanduser()
    monkeypatch.setenv("HF_HOME", "/a")
    assert hub_cache(Settings()) == Path("/a/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/b")
    assert hub_cache(Settings()) == Path("/b")
    assert hub_cache(Settings(cache_dir=Path("/c"))) == Path("/c")


def test_the_repositories_are_open_clips_own() -> None:
    pretrained = pytest.importorskip("open_clip.pretrained")
    for architecture, repo in OPENAI_REPOS.items():
        cfg = pretrained.get_pretrained_cfg(f"{architecture}-quickgelu", "openai")
        assert cfg["hf_hub"].strip("/") == repo


def test_of_a_folder_without_a_configuration_nothing_is_known(tmp_path: Path) -> None:
    assert facts_of(ModelSpec("x", f"local-dir:{tmp_path}"), tmp_path) == Facts(local=False)
    (tmp_path / "open_clip_config.json").write_text("this is no JSON")
    assert facts_of(ModelSpec("x", f"local-dir:{tmp_path}"), tmp_path) == Facts(local=False)
