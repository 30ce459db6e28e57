"""The command's words, tables and refusals: nothing is started here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clip_queue.cli import health
from clip_queue.cli.demo import load_samples
from clip_queue.cli.main import app
from clip_queue.cli.models import OPENAI_REPOS, facts_of, hub_cache, table
from clip_queue.cli.up import first_request
from clip_queue.shared.models import CATALOGUE, ModelSpec
from clip_queue.shared.settings import Settings
from clip_queue.stack import children, machine
from clip_queue.stack.embedded import EmbeddedStack, absolute
from clip_queue.stack.machine import (
    FolderLock,
    StackError,
    bind_problem,
    free_port,
    is_loopback,
    reachable,
    sweep,
    visible_gpus,
)
from clip_queue.version import __version__

run = CliRunner().invoke


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings from outside, and a folder of its own to stand in."""
    for name in [name for name in os.environ if name.startswith("CLIP_QUEUE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_version_and_help() -> None:
    assert __version__ in run(app, ["--version"]).output
    helped = run(app, ["--help"]).output
    assert all(command in helped for command in ("up", "models", "demo"))


def test_the_command_starts_without_torch_or_the_services() -> None:
    code = "import sys, cli.main; print([m for m in ('torch', 'open_clip', 'celery', 'fastapi') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], ["no API key is set", "CLIP_QUEUE_API_KEYS", "127.0.0.1"]),
        (["--model", "no-such"], ["unknown model 'no-such'", "ViT-B-16", "NAME=SOURCE"]),
        (["--redis", "not a url"], ["no answer from the Redis given"]),
    ],
)
def test_up_refuses_in_a_line(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    result = run(app, ["up", "--data-dir", str(tmp_path / "data"), "--port", str(free_port()), *arguments])
    assert result.exit_code == 1
    assert all(word in result.stderr for word in words)
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.output


def test_wrong_settings_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_LEASE", "hunter2")
    result = run(app, ["up"])
    assert result.exit_code == 1
    assert "CLIP_QUEUE_LEASE" in result.stderr
    assert "hunter2" not in result.output


def test_a_data_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(app, ["up", "--data-dir", str(tmp_path / "file" / "data")])
    assert result.exit_code == 1
    assert "cannot write to" in result.stderr
    assert "--data-dir" in result.stderr


def test_models_lists_the_configured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_MODELS", "ViT-B-32,mine=local-dir:/nowhere")
    monkeypatch.setenv("COLUMNS", "120")
    lines = run(app, ["models"]).output.splitlines()
    names = [line.split()[0] for line in lines if line.strip()][2:]
    assert names[:3] == ["ViT-B-32", "mine", "emoji-mini"]
    assert set(CATALOGUE) < set(names)
    assert table(Settings()).row_count == len(CATALOGUE) + 1


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
    assert facts_of(CATALOGUE["ViT-B-16"], tmp_path).local is False, "a configuration is no weights"
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


def test_the_request_to_try_is_a_shell_command() -> None:
    request = first_request("http://127.0.0.1:1", keyed=False)
    printed = subprocess.run(
        ["bash", "-c", request.replace("curl", "printf '%s\\n'", 1)], capture_output=True, text=True
    )
    body = json.loads(printed.stdout.splitlines()[-1])
    assert set(body) == {"subject", "subject_type", "prompt"}
    assert "Authorization: Bearer" in first_request("http://127.0.0.1:1", keyed=True)


def test_samples_are_pictures_with_names() -> None:
    samples = load_samples()
    assert len({sample.name for sample in samples}) == len(samples) >= 4
    assert all(sample.png.startswith(b"\x89PNG") for sample in samples)


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""))
    assert (reachable("0.0.0.0"), reachable("::1"), reachable("box")) == ("127.0.0.1", "[::1]", "box")


def test_ports() -> None:
    port = free_port()
    assert bind_problem("127.0.0.1", port) is None
    with machine.socket.create_server(("127.0.0.1", port)):
        assert bind_problem("127.0.0.1", port) == "Address already in use"
    assert bind_problem("no-such-host.invalid", port)


def test_a_folder_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LOCK_WAIT", 0.1)
    lock = FolderLock(tmp_path / "data")
    with pytest.raises(StackError, match=rf"another clip-queue \(pid {os.getpid()}\) uses"):
        FolderLock(tmp_path / "data")
    lock.release()
    FolderLock(tmp_path / "data").release()
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0, "nobody else reads what is queued"


def test_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: One (UUID: x)'; echo 'GPU 1: Two (UUID: y)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert visible_gpus() == ["0", "1"]
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []


def test_workers_share_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    stack = EmbeddedStack(Settings(), workers=3)
    given = [stack.worker(n).env["CUDA_VISIBLE_DEVICES"] for n in (1, 2, 3)]
    assert given == ["4", "7", "4"]
    assert EmbeddedStack(Settings(), workers=None).workers == 2
    assert EmbeddedStack(Settings(device="cpu"), workers=None).workers == 1


def test_no_secret_stands_on_a_command_line() -> None:
    settings = Settings(api_keys=["secret-key"], redis_url="redis://:secret-pass@127.0.0.1:1/0")  # type: ignore[arg-type, list-item]
    stack = EmbeddedStack(settings)
    for spec in (stack.worker(1), children.api(stack.settings, stack.host, 1)):
        assert "secret" not in " ".join(spec.command)
        assert spec.env["CLIP_QUEUE_API_KEYS"] == "secret-key"
    assert "--no-access-log" in children.api(stack.settings, stack.host, 1).command, "a key may stand in a query string"


def test_paths_do_not_depend_on_where_the_children_run(tmp_path: Path) -> None:
    assert absolute("ViT-B-16") == "ViT-B-16"
    assert absolute("mine=local-dir:here") == f"mine=local-dir:{tmp_path / 'here'}"
    stack = EmbeddedStack(Settings(cache_dir=Path("weights")), data_dir=Path("data"))
    assert stack.settings.cache_dir == tmp_path / "weights"
    assert stack.data_dir == tmp_path / "data"


def test_health_checks_say_no_where_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setattr(health, "get_settings", lambda: Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))  # type: ignore[arg-type]
    assert health.api() is False
    assert health.worker() is False


def test_folders_of_killed_supervisors_are_swept_and_no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    long_ago = (1, 1)
    left, held, fresh, foreign, linked = (tmp_path / name for name in ("cq-1", "cq-2", "cq-3", "other", "cq-4"))
    for folder in (left, held, fresh, foreign):
        (folder / "valkey").mkdir(parents=True)
        (folder / "lock").touch()
        os.utime(folder / "lock", None if folder is fresh else long_ago)
    linked.symlink_to(foreign)
    lock = FolderLock(held)
    os.utime(held / "lock", long_ago)
    sweep("cq-")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cq-2", "cq-3", "cq-4", "other"]
    assert (foreign / "lock").exists()
    lock.release()
    sweep("cq-")
    assert not held.exists()
