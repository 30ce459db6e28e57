"""The same client for an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar, overload

import httpx
import numpy as np
from numpy.typing import NDArray

from clip_queue.client import batches, jobs
from clip_queue.client.batches import Answered, Batches, ClientLimits, Kind, LongTexts, OnError
from clip_queue.client.errors import ClientClosed, ClipQueueError, Unavailable
from clip_queue.client.images import Image
from clip_queue.client.jobs import Document
from clip_queue.client.progress import bar
from clip_queue.client.results import Embeddings
from clip_queue.client.steps import Answer, Done, Pause, Request, Steps, advance, persistent
from clip_queue.client.transport import Server, answer_of

T = TypeVar("T")


class AsyncClient:
    """:class:`Client` for one event loop: the same arguments, methods and errors. Images are encoded in a thread."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retry_for: float = 60.0,
        concurrency: int = 4,
        progress: bool = True,
        limits: ClientLimits | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._server = Server(url, api_key, timeout, retry_for, concurrency, limits)
        self._progress = progress
        self._own = http is None
        self._http = http or httpx.AsyncClient()
        self._closed = False
        self._waits: set[asyncio.Timeout] = set()  # what is awaited now

    async def embed_images(
        self, images: Image | Iterable[Image], *, model: str | None = None, on_error: OnError = "fail"
    ) -> Embeddings:
        """As :meth:`Client.embed_images`."""
        call = batches.embedding("image", model, on_error, self._server.limits)
        await self._send_all(call, batches.several(images, "image"), "images")
        return call.embeddings()

    async def embed_texts(
        self,
        texts: str | Iterable[str],
        *,
        model: str | None = None,
        on_error: OnError = "fail",
        long_texts: LongTexts = "fail",
    ) -> Embeddings:
        """As :meth:`Client.embed_texts`."""
        call = batches.embedding("text", model, on_error, self._server.limits, long_texts)
        await self._send_all(call, batches.several(texts, "text"), "texts")
        return call.embeddings()

    @overload
    async def compare(  # type: ignore[overload-overlap]  # as in the other client
        self,
        subject: Image | str,
        prompts: Mapping[str, Image | str],
        *,
        subject_type: Kind = ...,
        prompt_type: Kind = ...,
        model: str | None = ...,
    ) -> dict[str, float]: ...

    @overload
    async def compare(
        self,
        subject: Image | str,
        prompts: Image | str | Iterable[Image | str],
        *,
        subject_type: Kind = ...,
        prompt_type: Kind = ...,
        model: str | None = ...,
    ) -> NDArray[np.float32]: ...

    async def compare(
        self,
        subject: Any,
        prompts: Any,
        *,
        subject_type: Kind = "image",
        prompt_type: Kind = "text",
        model: str | None = None,
    ) -> Any:
        """As :meth:`Client.compare`."""
        names, values = batches.named(prompts, prompt_type)
        call = await asyncio.to_thread(
            batches.comparison, subject, subject_type, prompt_type, model, self._server.limits
        )
        await self._send_all(call, values, "prompts")
        return call.cosines() if names is None else dict(zip(names, call.cosines().tolist(), strict=True))

    async def submit(self, task: Mapping[str, Any], *, idempotency_key: str | None = None) -> AsyncJob:
        """As :meth:`Client.submit`."""
        most = self._server.limits.body_bytes * 3 // 4
        steps = await asyncio.to_thread(jobs.submit, task, idempotency_key, most)
        return AsyncJob(self, await self._run(steps))

    async def job(self, job_id: str) -> AsyncJob:
        """As :meth:`Client.job`."""
        return AsyncJob(self, await self._run(jobs.look(job_id)))

    async def aclose(self) -> None:
        """End what is in flight: such calls raise :class:`ClientClosed`. Closing again does nothing."""
        self._closed = True
        waits, self._waits = self._waits, set()
        for wait in waits:
            wait.reschedule(0)
        if self._own:
            await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient({self._server.url!r})"

    async def _send_all(self, call: Batches, items: Iterable[object], what: str) -> None:
        """Send all parts of a call, some at a time, each in a task."""
        running: set[asyncio.Task[list[Answered]]] = set()
        with bar(items, call.most, what, self._progress) as advanced:

            async def take() -> None:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    running.remove(task)
                    call.add(task.result())
                advanced(call.done)

            try:
                for group in call.groups(items):
                    for part in await asyncio.to_thread(call.parts, group):
                        running.add(asyncio.create_task(self._run(call.ask(part)), name="clip-queue client"))
                        if len(running) == self._server.concurrency:
                            await take()
                while running:
                    await take()
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, steps: Steps[T]) -> T:
        steps = persistent(steps, self._server.retry_for)
        outcome: Answer | ClipQueueError | None = None
        while True:
            step = advance(steps, outcome)
            if isinstance(step, Done):
                return step.value
            outcome = None
            if isinstance(step, Request):
                outcome = await self._send(step)
            else:
                await self._pause(step)

    async def _pause(self, pause: Pause) -> None:
        await self._unless_closed(asyncio.sleep(pause.seconds))

    async def _unless_closed(self, work: Awaitable[T]) -> T:
        """What some work returns; raises :class:`ClientClosed` as soon as the client is closed."""
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                try:
                    return await work
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if not wait.expired():
                raise
        raise ClientClosed

    async def _send(self, request: Request) -> Answer | Unavailable:
        try:
            async with self._open(request) as response:
                await self._unless_closed(response.aread())
                return answer_of(response)
        except Unavailable as error:
            return error

    @contextlib.asynccontextmanager
    async def _open(self, request: Request) -> AsyncIterator[httpx.Response]:
        """The response to a request, to be read. Raises :class:`Unavailable`, also while it is read."""
        failure: ClipQueueError
        try:
            if self._closed:
                raise ClientClosed
            built = self._server.build(self._http, request)
            response = await self._unless_closed(self._http.send(built, auth=self._server.auth, stream=True))
            try:
                yield response
            finally:
                await response.aclose()
            return
        except (httpx.HTTPError, httpx.StreamError, RuntimeError) as error:
            if self._closed:
                failure = ClientClosed()
            elif isinstance(error, httpx.HTTPError):
                failure = self._server.failure(error)
            else:
                raise
        raise failure  # not in the block above: httpx's error holds the request, and that the key


class AsyncJob(jobs.JobHandle):
    """:class:`Job` for one event loop: the same attributes, and the same methods to be awaited."""

    def __init__(self, client: AsyncClient, document: Document) -> None:
        super().__init__(document)
        self._client = client

    async def refresh(self) -> AsyncJob:
        """As :meth:`Job.refresh`."""
        self.document = await self._client._run(jobs.look(self.id))
        return self

    async def wait(self, timeout: float | None = None) -> AsyncJob:
        """As :meth:`Job.wait`."""
        self.document = await self._client._run(jobs.wait(self.document, timeout))
        return self

    async def result(self, timeout: float | None = None) -> Any:
        """As :meth:`Job.result`."""
        self.document = await self._client._run(jobs.finished(self.document, timeout))
        return jobs.result(self.document)

    async def cancel(self) -> bool:
        """As :meth:`Job.cancel`."""
        self.document = await self._client._run(jobs.cancel(self.id))
        return self.state == "cancelled"

    async def events(self) -> AsyncIterator[Document]:
        """As :meth:`Job.events`."""
        client, stream = self._client, jobs.EventStream(self.id, self._client._server.retry_for)
        while not stream.over():
            failure = None
            try:
                async with client._open(stream.request) as response:
                    if not stream.accepts(response.status_code, response.headers):
                        await client._unless_closed(response.aread())
                        stream.refuse(answer_of(response))
                    parts = response.aiter_bytes()
                    while data := await client._unless_closed(anext(parts, b"")):
                        for self.document in stream.feed(data):
                            yield self.document
                        if stream.over():
                            return
            except Unavailable as error:
                failure = error
            if not stream.over():
                await client._pause(stream.pause(failure))
