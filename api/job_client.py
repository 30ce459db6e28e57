"""What every route goes through: a request becomes a job, and the job an answer."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from celery import Celery

from clip_queue.api.images import load_images
from clip_queue.api.publisher import Outbox
from clip_queue.api.reconciler import Reconciler
from clip_queue.api.registry import Registry
from clip_queue.api.reply_listener import Replies, Waiter
from clip_queue.api.requests import ClipRequest, Limits
from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError, Late, QueueFull, Unavailable
from clip_queue.shared.fetch import Fetcher
from clip_queue.shared.job import FINAL, Answer, Inputs, Job, Kind, Lane
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore
from clip_queue.shared.wire import unpack_answer

log = logging.getLogger(__name__)


class Door:
    """One an API process. Owns what leads to the queue and back."""

    def __init__(self, settings: Settings, celery: Celery) -> None:
        self.settings = settings
        self.store = AsyncStore.connect(settings)
        self.outbox = Outbox(self.store, celery)
        self.replies = Replies(settings)
        self.registry = Registry(self.store, settings)
        self.fetcher = Fetcher(settings)
        self.reconciler = Reconciler(self.store, self.registry, self.outbox, settings)

        self._computed: dict[str, float] = {}

    def computed(self, model: str) -> float:
        """When a model last computed an answer of this process's, on the monotonic clock; -inf: never."""
        return self._computed.get(model, -math.inf)

    def start(self) -> None:
        self.replies.start()
        self.registry.start()
        self.reconciler.start()

    async def close(self) -> None:
        await self.reconciler.close()
        await self.outbox.close()
        await self.replies.close()
        await self.registry.close()
        await self.fetcher.aclose()
        await self.store.close()

    async def inputs(self, sent: ClipRequest, limits: Limits) -> Inputs:
        """A request's items, its pictures fetched.

        Raises:
            BadInput: one of them cannot be used.
            Late: fetching took as long as a whole request may.
        """

        async def load(values: list[object], field: str) -> list[bytes]:
            return await load_images(values, self.fetcher, self.settings, field)

        try:
            async with asyncio.timeout(self.settings.request_timeout):
                return await sent.inputs(limits, load)
        except TimeoutError:
            raise Late(f"The images could not be fetched within {self.settings.request_timeout:g} s.") from None

    async def submit(self, submission: ops.Submission) -> ops.Accepted:
        """Put a job in the queue.

        Raises:
            Unavailable, QueueFull, KeyReused.
        """
        try:
            return await self.outbox.submit(submission)
        except QueueFull as error:
            error.retry_after = self.registry.retry_after(submission.job.model, submission.job.total)
            raise

    async def call(
        self,
        kind: Kind,
        model: str,
        inputs: Inputs,
        owner: str,
        gone: Callable[[], Awaitable[None]] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """A synchronous request: submit, wait, answer. ``gone`` returns when the caller has hung up.

        ``timeout``: seconds, by default ``request_timeout``.

        Raises:
            ClipError: what refused or ended the job; :class:`Late` past the deadline.
        """
        self.registry.check(model)
        timeout = timeout or self.settings.request_timeout
        job = Job(
            kind=kind,
            model=model,
            total=len(inputs.items),
            lane=Lane.INTERACTIVE,
            owner=owner,
            reply=self.replies.address,
            ttl=int(self.settings.sync_ttl * 1000),
        )
        submission = ops.Submission(job, inputs, self.settings.max_queued_items, deadline_in=timeout)
        with self.replies.waiting(job.id) as waiter:
            began = time.monotonic()
            await self.submit(submission)
            watcher = asyncio.create_task(self._hang_up(job, gone)) if gone else None
            try:
                return await self._answer(job, waiter, began + timeout, timeout)
            finally:
                if watcher:
                    watcher.cancel()

    @asynccontextmanager
    async def watching(self, job_id: str) -> AsyncIterator[Waiter]:
        """Hear of each change of a job, from any door, as long as the context lasts."""
        with self.replies.waiting(job_id) as waiter:
            await self.store.run(ops.watch(job_id, self.replies.address))
            yield waiter

    async def _hang_up(self, job: Job, gone: Callable[[], Awaitable[None]]) -> None:
        """A request that its caller gave up costs no forward pass if it has not started."""
        await gone()
        try:
            await self.store.run(ops.cancel(job.id, job.owner))
        except ClipError as error:
            log.debug("a job given up was not cancelled: %s", error.message)

    async def _answer(self, job: Job, waiter: Waiter, until: float, timeout: float) -> Answer:
        while True:
            late = False
            try:
                await asyncio.wait_for(waiter.news.wait(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                late = True
            waiter.news.clear()
            if waiter.note:
                answer: Answer | None = unpack_answer(waiter.note)
            else:
                answer = await self._look(job, late, timeout)
            if answer is not None:
                if answer.error:
                    raise ClipError.from_wire(answer.error)
                if answer.timings.get("forward"):  # not from a cache
                    self._computed[job.model] = time.monotonic()
                return answer

    async def _look(self, job: Job, late: bool, timeout: float) -> Answer | None:
        """What the store says of a job that no note came from; None: not ended yet."""
        try:
            view, answer = await self.store.run(ops.outcome(job.id))
        except Unavailable:
            if late:
                raise Late(f"Job {job.id} was accepted, but the job store cannot be reached now.") from None
            return None
        if view is None:
            raise Unavailable("The job store has lost the job; send it again.", retry_after=1)
        if view.job.state in FINAL:
            return answer or Answer(error=view.job.error)
        if late:
            raise Late(f"No result within {timeout:g} s; job {job.id} was {view.job.state}.")
        return None
