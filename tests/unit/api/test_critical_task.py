"""A task that the process cannot work without."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from clip_queue.api.critical_task import CriticalTask

from .service import until


async def test_a_task_that_ends_by_itself_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    ends: list[str] = []

    async def fail() -> None:
        raise RuntimeError("the reason")

    async def finish() -> None:
        pass

    for work in (fail, finish):
        task = CriticalTask(work.__name__, end_process=partial(ends.append, work.__name__))
        task.start(work())
        assert task.alive
        await until(lambda name=work.__name__: name in ends)
        assert not task.alive
    assert ends == ["fail", "finish"]
    assert "the task 'fail' has ended; so does this process" in caplog.text
    assert "RuntimeError: the reason" in caplog.text


async def test_a_task_that_is_closed_ends_nothing() -> None:
    ends: list[None] = []
    task = CriticalTask("waits", end_process=lambda: ends.append(None))
    await task.close()  # not started yet
    assert not task.alive
    task.start(asyncio.sleep(60))
    await task.close()
    assert not task.alive
    assert ends == []


async def test_a_cancellation_that_is_lost_is_repeated() -> None:
    async def lose_one() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    task = CriticalTask("loses one")
    task.start(lose_one())
    await asyncio.sleep(0)
    await asyncio.wait_for(task.close(), 3)
    assert not task.alive


def test_the_process_ends_by_sigterm() -> None:
    code = "from clip_queue.api.critical_task import terminate; terminate()"
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=60, check=False)
    assert done.returncode == -signal.SIGTERM
