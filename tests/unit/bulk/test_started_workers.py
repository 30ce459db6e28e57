"""The workers that a run starts: how they are stopped when it ends, one way or another."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from clip_queue.bulk.run import workers
from clip_queue.bulk.run.workers import started_workers
from clip_queue.shared.settings import Settings

SETTINGS = Settings(device="cpu")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stack is told to do, in order."""
    done: list[str] = []

    class Stack:
        alive, settings = True, SETTINGS

        def __init__(self, *_: object, **given: Any) -> None:
            done.append(f"log file {given['log_file']}")

        def start(self, **_: object) -> None: ...

        def hurry(self) -> None:
            done.append("hurry")

        def stop(self) -> None:
            done.append("stop")

    monkeypatch.setattr(workers, "EmbeddedStack", Stack)
    return done


@pytest.mark.parametrize(
    ("error", "hurried"), [(None, []), (ValueError, []), (KeyboardInterrupt, ["hurry"])], ids=["end", "error", "Ctrl-C"]
)
def test_they_may_finish_their_shards_unless_somebody_waits_at_a_keyboard(
    done: list[str], error: type[BaseException] | None, hurried: list[str]
) -> None:
    with (
        pytest.raises(error) if error else nullcontext(),
        started_workers(SETTINGS, 1, None, lambda line: None, lambda: False),
    ):
        if error:
            raise error
    assert done == ["log file None", *hurried, "stop"]
