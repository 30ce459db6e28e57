"""From inputs to a job in the queue, and from the job to its result. All routes use it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from fastapi import Request

from clip_queue.api.answered import AnsweredJobs
from clip_queue.api.critical_task import terminate
from clip_queue.api.items import FetchedItems, RequestItems
from clip_queue.api.proofs import Proofs
from clip_queue.api.publisher import CoalescingPublisher
from clip_queue.api.reconciler import Reconciler
from clip_queue.api.refused import complete_result, with_name
from clip_queue.api.registry import Registry
from clip_queue.api.reply_listener import PendingReply, ReplyListener
from clip_queue.shared import messages, ops, submissions, tracing
from clip_queue.shared.errors import ClipError, Late, QueueFull, Unavailable, UnknownJob
from clip_queue.shared.fetch import Fetcher
from clip_queue.shared.held import ByteLimits
from clip_queue.shared.job import FINAL, Job, JobResult, Kind, OnError, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.server_check import WrongServer, server_check
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore, Op, replicated
from clip_queue.shared.wire import unpack_result

log = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_AFTER = 0.1  # seconds after which a request that waits watches whether its caller leaves: most need no watching
LATER = 0.1  # seconds by which a job's deadline is behind its caller's, who is told what it was, not that it expired
CHECK_INTERVAL = 1.0  # seconds after which a request that waits checks whether its model still has a worker
LOOK_INTERVAL = 10.0  # seconds after which it reads the store, in case a message was lost


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
        self.reconciler = Reconciler(self.store, self.registry, settings)
        self.answered = AnsweredJobs(self.store)
        self.proofs = Proofs()

    @classmethod
    def connect(cls, settings: Settings) -> JobClient:
        """A client of the Redis that the settings name."""
        store = AsyncStore.connect(settings)
        publisher = CoalescingPublisher(store, replicas=_replicas(settings))
        return cls(settings, store, publisher, ReplyListener.connect(settings), Fetcher(settings))

    @staticmethod
    def of(request: Request) -> JobClient:
        """The client of the process that serves ``request``."""
        client: JobClient = request.app.state.job_client
        return client

    def start(self) -> None:
        for model in self.registry.configured:  # Celery takes 0.1 s for its first message: not while a request waits
            for lane in Lane:
                messages.to(model, lane)
        self.replies.start()
        self.registry.start()
        self.reconciler.start()
        self.answered.start()

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
        return all(part.alive for part in (self.replies, self.registry, self.reconciler, self.answered))

    async def close(self) -> None:
        await self.reconciler.close()
        await self.answered.close()
        await self.publisher.close()
        await self.replies.close()
        await self.registry.close()
        await self.fetcher.aclose()
        await self.store.close()

    async def fetch(self, asked: RequestItems, timeout: float | None = None) -> FetchedItems:
        """A request's items, each URL replaced by its image.

        Args:
            timeout: seconds, by default ``request_timeout``.

        Raises:
            BadImage: one of them cannot be fetched, and the request does not skip it.
            Late: they could not be fetched within ``timeout``; the same.
        """
        try:
            with tracing.stage("fetch"):
                items = await self.fetcher.resolve(
                    asked.items, timeout or self.settings.request_timeout, skip=asked.skip
                )
        except ClipError as error:
            if asked.names and error.index is not None:
                error.message = with_name(error.message, asked.names[error.index])
            raise
        return FetchedItems.of(items, asked)

    async def submit(self, submission: submissions.Submission) -> submissions.Accepted:
        """Put a job in the queue. One none of whose items is good has failed already.

        Raises:
            Unavailable, QueueFull, KeyReused: the job was refused (:meth:`CoalescingPublisher.submit`).
        """
        job = submission.job
        job.trace = tracing.current()
        try:
            if job.refused and not submission.inputs.items:
                failed = submissions.accept_failed(submission, ClipError.from_wire(job.refused[0]))
                accepted = await self.store.execute(replicated(failed, *_replicas(self.settings)))
                if isinstance(accepted, ClipError):
                    raise accepted
                return accepted
            with tracing.stage("submit"):
                return await self.publisher.submit(submission)
        except QueueFull as error:
            error.retry_after = error.retry_after or self.registry.retry_after(job.model, job.total)
            raise

    async def execute(self, op: Op[T]) -> T:
        """Do an operation of the store, so that as many replicas have what it wrote as the settings ask for."""
        return await self.store.execute(replicated(op, *_replicas(self.settings)))

    async def call(
        self,
        kind: Kind,
        model: str,
        items: FetchedItems,
        owner: str,
        disconnected: Callable[[], Awaitable[None]] | None = None,
        timeout: float | None = None,
        began: float | None = None,
        on_error: OnError = OnError.FAIL,
    ) -> JobResult:
        """A synchronous request: submit, wait, return the result.

        Args:
            model: a model that is served (:meth:`Registry.resolve`).
            disconnected: returns when the caller has closed the connection. Then the job is cancelled.
            timeout: seconds, by default ``request_timeout``.
            began: since when ``timeout`` counts, by ``time.monotonic``; None: now.

        Raises:
            ClipError: the error that the job was refused with, or ended with; :class:`Late` after the deadline;
                :class:`Unavailable` if its model has had no live worker for ``restart_grace`` seconds.
        """
        result = await self.run(kind, model, items, owner, disconnected, timeout, began, on_error)
        if result.error:
            raise ClipError.from_wire(result.error)
        return result

    async def run(
        self,
        kind: Kind,
        model: str,
        items: FetchedItems,
        owner: str,
        disconnected: Callable[[], Awaitable[None]] | None = None,
        timeout: float | None = None,
        began: float | None = None,
        on_error: OnError = OnError.FAIL,
    ) -> JobResult:
        """As :meth:`call`, but the result of a job that has ended with an error is returned too."""
        items.raise_if_none()
        timeout = timeout or self.settings.request_timeout
        now = time.monotonic()
        began = now if began is None else began
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
        left = max(0.001, timeout - (now - began))
        limit, held = self.settings.max_queued_items, ByteLimits.of(self.settings)
        submission = submissions.Submission(job, items.inputs, limit, deadline_in=left + LATER, bytes=held)
        with self.replies.expect(job.id) as reply:
            await self.submit(submission)
            with self._cancelling(job, disconnected) as watch:
                result = await self._result(job, reply, began + timeout, timeout, watch)
        if not result.error:
            self.answered.add(job.id)
            self.proofs.add(model, items.inputs, result)
        return result

    @asynccontextmanager
    async def watch(self, job_id: str) -> AsyncIterator[PendingReply]:
        """Receive a message for each change of a job inside the context, also if another process submitted the job."""
        with self.replies.expect(job_id) as reply:
            await self.store.execute(ops.watch(job_id, self.replies.address))
            yield reply

    @contextmanager
    def _cancelling(
        self, job: Job, disconnected: Callable[[], Awaitable[None]] | None
    ) -> Iterator[Callable[[], None] | None]:
        """What is yielded begins to watch whether the caller leaves; None: nobody can tell."""
        watchers: list[asyncio.Task[None]] = []

        def watch() -> None:
            assert disconnected
            watchers.append(asyncio.create_task(self._cancel_after(disconnected, job)))

        try:
            yield watch if disconnected else None
        finally:
            for watcher in watchers:
                watcher.cancel()

    async def _cancel_after(self, disconnected: Callable[[], Awaitable[None]], job: Job) -> None:
        """Cancel the job of a caller that has left, so that it takes no time of a worker."""
        await disconnected()
        try:
            await self.store.execute(ops.cancel(job.id, job.owner))
        except ClipError as error:
            log.debug("a job whose caller has left was not cancelled: %s", error.message)

    async def _result(
        self, job: Job, reply: PendingReply, until: float, timeout: float, watch: Callable[[], None] | None
    ) -> JobResult:
        """Wait for a job's result, or for the reason why there will be none. ``watch`` is called if it takes long."""
        now = time.monotonic()
        look_at = now + LOOK_INTERVAL
        while True:
            woken = await reply.wait(min(until - now, WATCH_AFTER if watch else CHECK_INTERVAL))
            now = time.monotonic()
            if watch and not woken:
                watch()
                watch = None
            late, gone = now >= until, self.registry.absent_for(job.model) > self.settings.restart_grace
            if not (woken or late or gone or now >= look_at):
                continue
            look_at = now + LOOK_INTERVAL
            result: JobResult | None = None
            if not reply.message:
                try:
                    result = await self._look(job, late, gone, timeout)
                except ClipError:
                    if not reply.message:  # it may have come while the store was asked
                        raise
            if reply.message:
                result = unpack_result(reply.message)
            if result is not None:
                return complete_result(job, result)

    async def _look(self, job: Job, late: bool, gone: bool, timeout: float) -> JobResult | None:
        """The result of a job as the store has it; None: the job has not ended yet, and is waited for.

        Args:
            late: the deadline has passed. It is not waited for any more; its worker or the reconciler expires it.
            gone: its model has no worker any more. The job is cancelled: no later worker works for nobody.
        """
        try:
            if gone:
                await self.store.execute(ops.cancel(job.id, job.owner))
            view, result = await self.store.execute(ops.outcome(job.id))
        except UnknownJob:
            view, result = None, None
        except Unavailable:
            if late:
                raise Late(f"Job {job.id} was accepted, but the job store cannot be reached now.") from None
            return None
        if view is None or (view.job.state is State.SUCCEEDED and result is None):
            raise Unavailable("The job store has lost the job; send it again.", retry_after=1)
        if gone and view.job.state is State.CANCELLED:
            raise self.registry.no_worker(job.model)
        if view.job.state in FINAL:
            return result or JobResult(error=view.job.error)
        if late and job.model not in self.registry.models:
            raise self.registry.no_worker(job.model)
        if late:
            raise Late(f"No result within {timeout:g} s; job {job.id} was {view.job.state}.")
        return None


def _replicas(settings: Settings) -> tuple[int, float]:
    """How many replicas must have an accepted job, and how long they may take: less than the store's own timeout, s."""
    return settings.redis_replicas, settings.redis_timeout / 2
