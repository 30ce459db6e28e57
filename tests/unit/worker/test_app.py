"""The Celery application: its queues, and a start that fails with a message and without a model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clip_queue.shared.messages import TASK
from clip_queue.shared.settings import Settings
from clip_queue.shared.startup import CANNOT_WORK
from clip_queue.worker.app import app, start
from clip_queue.worker.inference.clip_model import CHECKPOINTS
from tests.harness import free_port, wait_for


def refusal(settings: Settings, capfd: pytest.CaptureFixture[str]) -> str:
    """The line with which a worker of these settings ends."""
    with pytest.raises(SystemExit) as ended:
        start(settings)
    assert ended.value.code == CANNOT_WORK
    said = capfd.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("x=ViT-B-32/no-such-tag", ["ViT-B-32 has no weights 'no-such-tag'", "openai"]),
        ("x=ViT-B-33/random", ["no architecture 'ViT-B-33'", "did you mean ViT-B-32?"]),
        ("x=local-dir:/no/such/folder", ["there is no folder /no/such/folder"]),
    ],
)
def test_a_model_that_cannot_be_loaded_ends_the_process_with_the_reason(
    model: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(Settings(models=[model], device="cpu"), capfd)
    assert message.startswith(f"clip-queue worker: CLIP_QUEUE_MODELS: {model} cannot be loaded: ")
    assert all(word in message for word in words), message


def test_a_folder_without_a_model_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = Settings(models=[f"x=local-dir:{tmp_path}"], device="cpu")
    assert f"{tmp_path} has no open_clip_config.json" in refusal(wrong, capfd)


def test_a_redis_url_that_is_none_is_an_error_without_the_url(capfd: pytest.CaptureFixture[str]) -> None:
    settings = Settings(device="cpu", redis_url="ftp://:secret@host")  # type: ignore[arg-type]
    message = refusal(settings, capfd)
    assert "The Redis URL is not right: it begins with redis://" in message
    assert "secret" not in message


def test_broken_weights_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(CHECKPOINTS / "emoji-mini", tmp_path / "broken")
    for file in (tmp_path / "broken").glob("*.safetensors"):
        file.write_bytes(b"these are no weights")
    assert "cannot be loaded: " in refusal(Settings(models=[f"x=local-dir:{tmp_path / 'broken'}"], device="cpu"), capfd)


@pytest.mark.parametrize("device", ["cuda:9", "no-such", "cpu:x"])
def test_a_device_that_is_not_there_is_named(device: str, capfd: pytest.CaptureFixture[str]) -> None:
    message = refusal(Settings(device=device), capfd)
    assert message.startswith(f"clip-queue worker: CLIP_QUEUE_DEVICE: '{device}' cannot be used (")


def test_a_worker_starts_and_stops_while_the_store_cannot_be_reached(caplog: pytest.LogCaptureFixture) -> None:
    worker = start(Settings(device="cpu", redis_url=f"redis://127.0.0.1:{free_port()}/0"))  # type: ignore[arg-type]
    wait_for(lambda: "no heartbeat: The job store cannot be reached (ConnectionError)" in caplog.text, 10)
    worker.heartbeat.drain()
    assert worker.executor.draining.is_set()
    worker.stop()
    assert not worker.executor.engine.batcher.alive()


def test_a_process_can_say_that_it_loads_models_before_it_imports_torch() -> None:
    code = "import sys, clip_queue.worker.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_queues_are_read_interactive_first() -> None:
    assert [queue.name for queue in app.conf.task_queues] == [
        "clip.emoji-mini.interactive",
        "clip.emoji-mini.background",
        "clip.emoji-mini.bulk",
        "clip.emoji-mini:led.bulk",
    ]
    assert (app.conf.worker_pool, app.conf.task_acks_late) == ("threads", True)


def test_a_message_before_the_models_are_loaded_is_refused() -> None:
    with pytest.raises(RuntimeError, match="a message came before the model was loaded"):
        app.tasks[TASK]("emoji-mini", "interactive", ["id"])
