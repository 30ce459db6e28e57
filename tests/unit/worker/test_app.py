"""The Celery application: its queues, and a start that fails with a message and without a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clip_queue.shared.broker import TASK
from clip_queue.shared.settings import Settings
from clip_queue.worker.app import app, start
from tests.harness import free_port, wait_for


def refusal(settings: Settings) -> str:
    """The message with which a worker of these settings ends."""
    with pytest.raises(SystemExit) as ended:
        start(settings)
    return str(ended.value.code)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no-such", ["unknown model 'no-such': use one of emoji-mini", "or NAME=SOURCE"]),
        ("x=ViT-B-32/no-such-tag", ["no-such-tag"]),
        ("x=no-such-architecture/random", ["no-such-architecture"]),
    ],
)
def test_a_model_that_cannot_be_loaded_ends_the_process_with_the_reason(
    model: str, words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    message = refusal(Settings(models=[model], device="cpu"))
    assert message.startswith("clip-queue worker: ")
    assert all(word in message for word in words), message
    assert "the worker could not start" in caplog.text


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(Settings(models=[f"x=local-dir:{tmp_path}"], device="cpu"))


def test_a_redis_url_that_is_none_is_an_error_without_the_url() -> None:
    settings = Settings(device="cpu", redis_url="ftp://:secret@host")  # type: ignore[arg-type]
    message = refusal(settings)
    assert "The Redis URL is not right: it begins with redis://" in message
    assert "secret" not in message


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
    ]
    assert (app.conf.worker_pool, app.conf.task_acks_late) == ("threads", True)


def test_a_message_before_the_models_are_loaded_is_refused() -> None:
    with pytest.raises(RuntimeError, match="a message came before the model was loaded"):
        app.tasks[TASK]("emoji-mini", "interactive", ["id"])
