"""From the API to the queue: jobs that arrive together go together.

A Celery message costs more than most of the work it carries. So while one publish is under way, the jobs that
arrive wait, and go as one message of up to 64 references. Idle: one job, one message, no delay, no timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from celery import Celery

from clip_queue.shared import ops
from clip_queue.shared.broker import MESSAGE, TASK, queue_name
from clip_queue.shared.errors import ClipError, Unavailable
from clip_queue.shared.job import Lane
from clip_queue.shared.store import AsyncStore

log = logging.getLogger(__name__)

BYTES = 32 * 2**20  # most inputs in one pipeline
WAITING = 4096  # most submissions that wait for a publish


@dataclass(eq=False)
class _Parcel:
    submission: ops.Submission
    done: asyncio.Future[ops.Accepted]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.submission.inputs.items))


class Outbox:
    """One an API process; a task for each model and lane that is in use."""

    def __init__(self, store: AsyncStore, app: Celery) -> None:
        self._store = store
        self._app = app
        self._waiting: dict[tuple[str, Lane], deque[_Parcel]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # send_task blocks. Two threads: a publish to one queue does not wait for another's.
        self._publishers = ThreadPoolExecutor(2, thread_name_prefix="publish")

    async def submit(self, submission: ops.Submission) -> ops.Accepted:
        """Returns once the job is in the store and its reference in the queue.

        Raises:
            QueueFull, KeyReused: refused by the store.
            Unavailable: it could not be enqueued, and is forgotten.
        """
        parcel = _Parcel(submission, asyncio.get_running_loop().create_future())
        lane = (submission.job.model, submission.job.lane)
        waiting = self._waiting.get(lane)
        if waiting is None:
            self._waiting[lane] = deque([parcel])
            self._own(self._drain(lane), f"outbox {queue_name(*lane)}")
        elif len(waiting) >= WAITING:
            raise Unavailable("Too many requests wait for the queue; try again.", retry_after=1)
        else:
            waiting.append(parcel)
        return await parcel.done

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        self._publishers.shutdown(wait=False, cancel_futures=True)

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self, lane: tuple[str, Lane]) -> None:
        """Send until nothing waits; what arrives meanwhile goes with the next message."""
        waiting = self._waiting[lane]
        while waiting:
            parcels: list[_Parcel] = []
            size = 0
            while waiting and len(parcels) < MESSAGE and (not parcels or size + waiting[0].size <= BYTES):
                parcels.append(waiting.popleft())
                size += parcels[-1].size
            try:
                await self._send(lane, [p for p in parcels if not p.done.done()])
            except Unavailable as error:
                # Who waited behind would only wait as long again.
                _refuse([*parcels, *waiting], error)
                waiting.clear()
            except Exception as error:
                log.exception("sending failed")
                _refuse(parcels, Unavailable(f"The job could not be queued ({type(error).__name__}).", retry_after=1))
        del self._waiting[lane]

    async def _send(self, lane: tuple[str, Lane], parcels: list[_Parcel]) -> None:
        """Raises :class:`Unavailable`, for all that are not told yet."""
        if not parcels:
            return
        try:
            results = await self._store.run(ops.accept([p.submission for p in parcels]))
        except Unavailable:
            # It may have been written all the same, and the reply lost.
            self._own(self._forget([p.submission.job.id for p in parcels]), "forget")
            raise
        fresh: list[tuple[_Parcel, ops.Accepted]] = []
        for parcel, result in zip(parcels, results, strict=True):
            if isinstance(result, ClipError):
                _refuse([parcel], result)
            elif result.again:
                _deliver(parcel, result)
            else:
                fresh.append((parcel, result))
        if not fresh:
            return
        ids = [accepted.job_id for _, accepted in fresh]
        try:
            await self.publish(lane, ids)
        except Exception as error:  # whatever the broker's client raises
            log.warning("could not enqueue %d job(s): %s", len(ids), type(error).__name__)
            self._own(self._forget(ids), "forget")
            raise Unavailable("The queue cannot be reached; try again.", retry_after=1) from error
        for parcel, accepted in fresh:
            _deliver(parcel, accepted)

    async def publish(self, lane: tuple[str, Lane], ids: list[str]) -> None:
        """Send references to jobs that stand in the store. Raises what the broker's client raises."""
        await asyncio.get_running_loop().run_in_executor(self._publishers, self._publish, lane, ids)

    def _publish(self, lane: tuple[str, Lane], ids: list[str]) -> None:
        self._app.send_task(TASK, (*lane, ids), queue=queue_name(*lane), retry=False)

    async def _forget(self, ids: list[str]) -> None:
        try:
            await self._store.run(ops.forget(ids))
        except Unavailable:
            log.warning("%d refused job(s) may stay in the store until their deadline", len(ids))


def _deliver(parcel: _Parcel, accepted: ops.Accepted) -> None:
    if not parcel.done.done():
        parcel.done.set_result(accepted)


def _refuse(parcels: list[_Parcel], error: ClipError) -> None:
    for parcel in parcels:
        if not parcel.done.done():
            parcel.done.set_exception(error)
