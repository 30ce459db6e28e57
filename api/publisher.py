"""From the API to the queue: jobs that arrive at the same time are accepted and published in one step.

A Celery message costs more time than most of the jobs that it refers to. So jobs that arrive while others are being
written wait, and go together, up to 64, in one script and one message, or in a message that still waits for a worker. A
job that arrives while nothing is under way is written at once: there is no timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from clip_queue.shared import submissions
from clip_queue.shared.errors import ClipError, Unavailable
from clip_queue.shared.lane import Lane
from clip_queue.shared.messages import MESSAGE, queue_name
from clip_queue.shared.store import AsyncStore, replicated

log = logging.getLogger(__name__)

MAX_BYTES = 32 * 2**20  # most bytes of inputs in one pipeline
MAX_PENDING = 4096  # most submissions that wait to be published, in each lane of a model


@dataclass(eq=False)
class Pending:
    """A submission that waits to be published. ``size`` is the number of bytes and characters of its inputs."""

    submission: submissions.Submission
    done: asyncio.Future[submissions.Accepted]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.submission.inputs.items))


class CoalescingPublisher:
    """Writes submissions to the store, and their references to the queue. Each model and lane in use has a task of its
    own.

    Args:
        max_pending: most submissions that wait in each lane of a model.
        replicas: how many of Redis's replicas must have a job before it is accepted, and how long they may take, s.
    """

    def __init__(
        self, store: AsyncStore, *, max_pending: int = MAX_PENDING, replicas: tuple[int, float] = (0, 0)
    ) -> None:
        self._store = store
        self._max_pending, self._replicas = max_pending, replicas
        self._pending: dict[tuple[str, Lane], deque[Pending]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, submission: submissions.Submission) -> submissions.Accepted:
        """Returns once the job is in the store and its reference in the queue.

        Raises:
            QueueFull, KeyReused: the store refuses the job.
            Unavailable: the store did not answer. What it may have written is discarded.
        """
        pending = Pending(submission, asyncio.get_running_loop().create_future())
        lane = (submission.job.model, submission.job.lane)
        queued = self._pending.get(lane)
        if queued is None:
            self._pending[lane] = deque([pending])
            self._start(self._drain(lane), f"publish {queue_name(*lane)}")
        elif len(queued) >= self._max_pending:
            raise Unavailable("Too many requests wait for the queue; try again.", retry_after=1)
        else:
            queued.append(pending)
        return await pending.done

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self, lane: tuple[str, Lane]) -> None:
        """Send until no submission waits. Those that arrive meanwhile go with the next message."""
        queued = self._pending[lane]
        while queued:
            batch: list[Pending] = []
            size = 0
            while queued and len(batch) < MESSAGE and (not batch or size + queued[0].size <= MAX_BYTES):
                batch.append(queued.popleft())
                size += batch[-1].size
            try:
                await self._send([p for p in batch if not p.done.done()])
            except Unavailable as error:
                # The submissions behind would only wait as long for the same error.
                _refuse([*batch, *queued], error)
                queued.clear()
            except Exception as error:
                log.exception("sending failed")
                _refuse(batch, Unavailable(f"The job could not be queued ({type(error).__name__}).", retry_after=1))
        del self._pending[lane]

    async def _send(self, batch: list[Pending]) -> None:
        """Accept and publish a batch. Raises :class:`Unavailable` for all of it."""
        if not batch:
            return
        try:
            accepting = submissions.accept([p.submission for p in batch])
            results = await self._store.execute(replicated(accepting, *self._replicas))
        except Unavailable:
            # The store may have written the jobs, and only its reply was lost.
            self._start(self._discard([p.submission.job.id for p in batch]), "discard")
            raise
        for pending, result in zip(batch, results, strict=True):
            if isinstance(result, ClipError):
                _refuse([pending], result)
            elif not pending.done.done():
                pending.done.set_result(result)

    async def _discard(self, ids: list[str]) -> None:
        try:
            await self._store.execute(submissions.discard(ids))
        except Unavailable:
            log.warning("%d refused job(s) may stay in the store until their deadline", len(ids))


def _refuse(batch: list[Pending], error: ClipError) -> None:
    for pending in batch:
        if not pending.done.done():
            pending.done.set_exception(error)
