"""API and worker on a file system that is read-only but for one folder, as the images are run."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, Api, Service, Stack, stack

# In a mount namespace of its own: the folder stays writable, all else does not, for root either.
JAIL = 'mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,ro,bind / && exec "$@"'


def jailed(command: list[str], folder: Path) -> list[str]:
    """A command that can write to ``folder`` alone; the process keeps its id."""
    return ["unshare", "--mount", "sh", "-c", JAIL, str(folder), *command]


def can_write(path: Path, folder: Path) -> bool:
    done = subprocess.run(jailed(["touch", str(path)], folder), capture_output=True, text=True, timeout=30)
    return done.returncode == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for /tmp and /weights."""
    folder = tmp_path_factory.mktemp("writable")
    if os.geteuid() != 0 or shutil.which("unshare") is None or not can_write(folder / "tried", folder):
        pytest.skip("needs root, and unshare --mount")
    return folder


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Service, Api]]:
    with stack(tmp_path_factory.mktemp("stack"), cache_dir=folder) as it:
        env = {**it.env(), "TMPDIR": str(folder), "HOME": "/nonexistent", "HF_HOME": str(folder / "hub")}
        celery = [sys.executable, "-m", "celery", "-A", "clip_queue.worker.app", "worker", "--pool", "threads"]
        worker = it.add(Service("worker", jailed([*celery, "-l", "INFO"], folder), it.folder, env))
        api = Api("clip_queue.api.app:app", it.folder, "api", env)
        api.command = jailed(api.command, folder)
        it.add(api)
        it.ready(worker, api)
        yield it, worker, api


def test_the_jail_holds(folder: Path) -> None:
    assert can_write(folder / "file", folder)
    assert not can_write(ROOT / "file", folder)
    assert not can_write(folder.parent / "file", folder)


def test_it_embeds_and_is_healthy(service: tuple[Stack, Service, Api], folder: Path) -> None:
    it, _, api = service
    image = base64.b64encode((ROOT / "cli" / "samples" / "dog.png").read_bytes()).decode()
    with api.client() as client:
        asked = client.post("/clip/embed_image", json={"image": {"type": "base64", "value": image}})
        assert asked.status_code == 200, asked.text
        assert client.post("/clip/embed_text", json={"text": "dog face"}).status_code == 200
    probe = jailed([sys.executable, "-m", "clip_queue.cli.health", "worker"], folder)
    done = subprocess.run(probe, env={**os.environ, **it.env()}, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_it_ends_in_order(service: tuple[Stack, Service, Api]) -> None:
    _, worker, api = service
    assert worker.stop() == 0, worker.tail()
    assert api.stop() == -signal.SIGTERM, api.tail()  # uvicorn ends by the signal that it was sent
    assert "Application shutdown complete" in api.tail()
    for process in worker, api:
        assert "Read-only file system" not in process.log.read_text()
