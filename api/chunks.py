"""An embedding request of many items as several jobs, a few at a time: so it holds up no smaller request for long."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from clip_queue.api.items import FetchedItems
from clip_queue.api.job_client import JobClient
from clip_queue.api.refused import complete_result
from clip_queue.shared.errors import ClipError, QueueFull
from clip_queue.shared.job import Job, JobResult, Kind, OnError

CHUNK = 128  # most items of a chunk, which is one job
PAUSE = 0.1  # seconds after which a chunk is submitted again that found the queue full; each time twice as many,
LONGEST_PAUSE = 2.0  # up to these: with each try the images go to the store
AHEAD = 2  # most chunks of a request in the queue: one is prepared while the other is computed


async def embed(
    client: JobClient,
    kind: Kind,
    model: str,
    items: FetchedItems,
    owner: str,
    disconnected: Callable[[], Awaitable[None]],
    began: float,
    on_error: OnError = OnError.FAIL,
) -> JobResult:
    """The result of an embedding request, as :meth:`JobClient.call` returns it and with its errors.

    Of several chunks, ``fingerprint`` names each that differs, and ``timings`` are those of the last.
    """
    inputs = items.inputs.items
    count = math.ceil(len(inputs) / CHUNK)
    if count < 2:
        return await client.call(kind, model, items, owner, disconnected, began=began, on_error=on_error)
    size = math.ceil(len(inputs) / count)  # even, so that no chunk is tiny
    gone = asyncio.Event()  # the caller has left, or a chunk has failed: the others are cancelled

    async def watch() -> None:
        await disconnected()
        gone.set()

    async def left() -> None:
        await gone.wait()

    async def attempt(chunk: FetchedItems) -> JobResult:
        return await client.run(kind, model, chunk, owner, left, began=began, on_error=on_error)

    async def patiently(chunk: FetchedItems) -> JobResult:
        """As an attempt, but a full queue is waited for: the request was accepted with its first chunk."""
        pause = PAUSE
        while True:
            try:
                return await attempt(chunk)
            except QueueFull:
                if gone.is_set() or time.monotonic() - began > client.settings.request_timeout:
                    raise
                with suppress(TimeoutError):
                    await asyncio.wait_for(gone.wait(), pause)
                if gone.is_set():
                    raise
                pause = min(2 * pause, LONGEST_PAUSE)

    async def run(start: int) -> JobResult:
        chunk = FetchedItems(replace(items.inputs, items=inputs[start : start + size]))
        try:
            result = await (attempt if start == 0 else patiently)(chunk)
        except ClipError as error:
            error.index = None if error.index is None else error.index + start
            raise
        errors = [_moved(error, start) for error in result.errors]
        if result.error and not (on_error is OnError.SKIP and len(errors) == len(chunk.inputs.items)):
            raise ClipError.from_wire(_moved(result.error, start))
        return replace(result, errors=errors)

    watcher = asyncio.create_task(watch())
    running: deque[asyncio.Task[JobResult]] = deque()
    results: list[JobResult] = []
    try:
        for start in range(0, len(inputs), size):
            if len(running) == AHEAD:
                results.append(await running.popleft())
            running.append(asyncio.create_task(run(start)))
        while running:  # in order, so that the first error by order is the one that is raised
            results.append(await running.popleft())
    finally:
        gone.set()
        watcher.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    result = _joined(results)
    job = Job(kind, model, total=len(inputs), owner=owner, on_error=on_error, refused=items.refused)
    result = complete_result(job, result)
    if not result.vectors:  # each item failed
        raise ClipError.from_wire(result.errors[0])
    return result


def _joined(results: list[JobResult]) -> JobResult:
    return JobResult(
        fingerprint=", ".join(dict.fromkeys(result.fingerprint for result in results)),
        vectors=b"".join(result.vectors for result in results),
        dimension=max(result.dimension for result in results),
        errors=[error for result in results for error in result.errors],
        timings=results[-1].timings,
    )


def _moved(error: dict[str, Any], start: int) -> dict[str, Any]:
    """An error of an item, with its place in the request."""
    return error if error.get("index") is None else {**error, "index": error["index"] + start}
