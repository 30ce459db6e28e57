"""From inputs to a job in the queue, and from the job to its result. All routes use it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import Request

from clip_queue.api.critical_task import terminate
from clip_queue.api.items import FetchedItems, RequestItems
from clip_queue.api.publisher import CoalescingPublisher
from clip_queue.api.reconciler import Reconciler
from clip_queue.api.refused import complete_result
from clip_queue.api.registry import Registry
from clip_queue.api.reply_listener import PendingReply, ReplyListener
from clip_queue.shared import ops
from clip_queue.shared.broker import celery_app
from clip_queue.shared.errors import ClipError, Late, QueueFull, Unavailable
from clip_queue.shared.fetch import Fetcher
from clip_queue.shared.job import FINAL, Job, JobResult, Kind, OnError, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.server_check import WrongServer, server_check
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore, replicated
from clip_queue.shared.wire import unpack_result

log = logging.getLogger(__name__)


class JobClient:
    """The connection of an API process to the store and the queue. It owns its parts: :meth:`close` closes them."""

    def __init__(
        self,
        settings: Settings,
        store: AsyncStore,
        publisher: CoalescingPublisher,
        replies: ReplyListener,
        fetcher: Fetcher,
    ) -> None:
        self.settings = settings
        self.store = store
        self.publisher = publisher
        self.replies = replies
        self.fetcher = fetcher
        self.registry = Registry(self.store, settings)
        self.reconciler = Reconciler(self.store, self.registry, self.publisher, settings)
        self._computed: dict[str, float] = {}

    @classmethod
    def connect(cls, settings: Settings) -> JobClient:
        """A client of the Redis that the settings name."""
        store = AsyncStore.connect(settings)
        publisher = CoalescingPublisher(store, celery_app(settings, publisher=True), replicas=_replicas(settings))
        return cls(settings, store, publisher, ReplyListener.connect(settings), Fetcher(settings))

    @staticmethod
    def of(request: Request) -> JobClient:
        """The client of the process that serves ``request``."""
        client: JobClient = request.app.state.job_client
        return client

    def computed(self, model: str) -> float:
        """When a model last computed a result for this process, by ``time.monotonic``; -inf: never."""
        return self._computed.get(model, -math.inf)

    def start(self) -> None:
        self.replies.start()
        self.registry.start()
        self.reconciler.start()

    async def check_server(self) -> None:
        """End this process if the Redis cannot serve it ever. One that is away now may be right when it comes."""
        try:
            await self.store.execute(server_check())
        except WrongServer as error:
            log.critical("this process ends: %s", error)
            terminate()
        except Unavailable as error:
            log.warning("the job store could not be looked at: %s", error.message)

    @property
    def alive(self) -> bool:
        """Whether all its tasks run."""
        return self.replies.alive and self.registry.alive and self.reconciler.alive

    async def close(self) -> None:
        await self.reconciler.close()
        await self.publisher.close()
        await self.replies.close()
        await self.registry.close()
        await self.fetcher.aclose()
        await self.store.close()

    async def fetch(self, asked: RequestItems) -> FetchedItems:
        """A request's items, each URL replaced by its image.

        Raises:
            BadImage: one of them cannot be fetched, and the request does not skip it.
            Late: they could not be fetched within ``request_timeout``; the same.
        """
        items = await self.fetcher.resolve(asked.items, self.settings.request_timeout, skip=asked.skip)
        return FetchedItems.of(items, asked.names)

    async def submit(self, submission: ops.Submission) -> ops.Accepted:
        """Put a job in the queue. One none of whose items is good has failed already.

        Raises:
            Unavailable, QueueFull, KeyReused: the job was refused (:meth:`CoalescingPublisher.submit`).
        """
        job = submission.job
        try:
            if job.refused and not submission.inputs.items:
                failed = ops.accept_failed(submission, ClipError.from_wire(job.refused[0]))
                accepted = await self.store.execute(replicated(failed, *_replicas(self.settings)))
                if isinstance(accepted, ClipError):
                    raise accepted
                return accepted
            return await self.publisher.submit(submission)
        except QueueFull as error:
            error.retry_after = self.registry.retry_after(job.model, job.total)
            raise

    async def call(
        self,
        kind: Kind,
        model: str,
        items: FetchedItems,
        owner: str,
        disconnected: Callable[[], Awaitable[None]] | None = None,
        timeout: float | None = None,
        on_error: OnError = OnError.FAIL,
    ) -> JobResult:
        """A synchronous request: submit, wait, return the result.

        Args:
            model: a model that is served (:meth:`Registry.resolve`).
            disconnected: returns when the caller has closed the connection. Then the job is cancelled.
            timeout: seconds, by default ``request_timeout``.

        Raises:
            ClipError: the error that the job was refused with, or ended with; :class:`Late` after the deadline.
        """
        items.raise_if_none()
        timeout = timeout or self.settings.request_timeout
        job = Job(
            kind=kind,
            model=model,
            total=len(items.inputs.items),
            lane=Lane.INTERACTIVE,
            owner=owner,
            on_error=on_error,
            refused=items.refused,
            reply=self.replies.address,
            ttl=int(self.settings.sync_ttl * 1000),
        )
        submission = ops.Submission(job, items.inputs, self.settings.max_queued_items, deadline_in=timeout)
        with self.replies.expect(job.id) as reply:
            began = time.monotonic()
            await self.submit(submission)
            watcher = asyncio.create_task(self._cancel_after(disconnected, job)) if disconnected else None
            try:
                return await self._result(job, reply, began + timeout, timeout)
            finally:
                if watcher:
                    watcher.cancel()

    @asynccontextmanager
    async def watch(self, job_id: str) -> AsyncIterator[PendingReply]:
        """Receive a message for each change of a job inside the context, also if another process submitted the job."""
        with self.replies.expect(job_id) as reply:
            await self.store.execute(ops.watch(job_id, self.replies.address))
            yield reply

    async def _cancel_after(self, disconnected: Callable[[], Awaitable[None]], job: Job) -> None:
        """Cancel the job of a caller that has left, so that it takes no time of a worker."""
        await disconnected()
        try:
            await self.store.execute(ops.cancel(job.id, job.owner))
        except ClipError as error:
            log.debug("a job whose caller has left was not cancelled: %s", error.message)

    async def _result(self, job: Job, reply: PendingReply, until: float, timeout: float) -> JobResult:
        while True:
            late = False
            try:
                await asyncio.wait_for(reply.event.wait(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                late = True
            reply.event.clear()
            if reply.message:
                result: JobResult | None = unpack_result(reply.message)
            else:
                result = await self._poll(job, late, timeout)
            if result is not None:
                result = complete_result(job, result)
                if result.error:
                    raise ClipError.from_wire(result.error)
                if result.timings.get("forward"):  # not from a cache
                    self._computed[job.model] = time.monotonic()
                return result

    async def _poll(self, job: Job, late: bool, timeout: float) -> JobResult | None:
        """The result of a job as the store has it; None: the job has not ended yet."""
        try:
            view, result = await self.store.execute(ops.outcome(job.id))
        except Unavailable:
            if late:
                raise Late(f"Job {job.id} was accepted, but the job store cannot be reached now.") from None
            return None
        if view is None or (view.job.state is State.SUCCEEDED and result is None):
            raise Unavailable("The job store has lost the job; send it again.", retry_after=1)
        if view.job.state in FINAL:
            return result or JobResult(error=view.job.error)
        if late:
            raise Late(f"No result within {timeout:g} s; job {job.id} was {view.job.state}.")
        return None


def _replicas(settings: Settings) -> tuple[int, float]:
    """How many replicas must have an accepted job, and how long they may take: less than the store's own timeout, s."""
    return settings.redis_replicas, settings.redis_timeout / 2
