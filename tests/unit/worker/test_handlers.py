"""Job handlers: those that are installed, those whose packages are missing, and jobs that have none."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint

import pytest

from clip_queue.bulk.run.led_handler import RunHandler
from clip_queue.bulk.shard.handler import ShardHandler
from clip_queue.shared.job import Job, Kind, State
from clip_queue.worker.executor.handlers import GROUP, load_handlers, unsupported


def test_the_handlers_of_shards_and_runs_are_installed() -> None:
    assert load_handlers() == {"embed_dataset": RunHandler, "embed_shard": ShardHandler}


def test_a_handler_whose_package_is_missing_is_left_out_with_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    points = [EntryPoint("one", "no_such_package:Handler", GROUP), EntryPoint("two", "pathlib:Path", GROUP)]
    assert list(load_handlers(points)) == ["two"]
    assert "no handler of one here: No module named 'no_such_package'" in caplog.text


def test_a_job_without_a_handler_fails_and_says_what_to_install() -> None:
    completion = unsupported(Job(Kind.EMBED_SHARD, "m", 1))
    assert (completion.state, completion.done, completion.failed) == (State.FAILED, 0, 0)
    assert completion.result.error is not None
    message = "This worker cannot do embed_shard: pip install 'clip-queue[serve]' there."
    assert completion.result.error["message"] == message
