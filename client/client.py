"""The blocking client."""

from __future__ import annotations

import contextlib
import socket
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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


class Client:
    """A client of a clip-queue server, for any number of threads.

    Args:
        url: of the server; by default ``CLIP_QUEUE_URL``, else ``http://127.0.0.1:9001``.
        api_key: by default ``CLIP_QUEUE_API_KEY``, else none. It is sent in a header, and never shown or logged.
        timeout: seconds that the server may take to accept a connection, to take a part of a request, or to answer.
        retry_for: seconds in which a request is sent again where there is no answer, or 429, 502, 503 or 504.
        concurrency: the most requests that a call has in flight.
        progress: whether a long call shows its progress where there is a terminal.
        limits: how much one request may hold; the server's defaults by default.
        http: a client of httpx to send by, with proxies, certificates or transports of your own. You close it.
    """

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
        http: httpx.Client | None = None,
    ) -> None:
        self._server = Server(url, api_key, timeout, retry_for, concurrency, limits)
        self._progress = progress
        self._own = http is None
        self._http = http or httpx.Client()
        self._sockets = _Sockets()
        self._lock = threading.Lock()
        self._closed = False
        self._calls: set[threading.Event] = set()  # each is set when its call is to end

    def embed_images(
        self, images: Image | Iterable[Image], *, model: str | None = None, on_error: OnError = "fail"
    ) -> Embeddings:
        """The vectors of images, in order.

        Args:
            images: one or any number of them: a path, a URL that the server fetches (``http://…``, ``https://…``), a
                data URI, the bytes of an encoded image, an open binary file, an array (height, width, 3) of uint8 in
                RGB, or Pillow's.
            model: one that is served; by default the server's first.
            on_error: ``fail``: one bad image fails the call; ``skip``: its row is NaN, and ``errors`` has the reason.

        Raises:
            BadRequest: an image is bad (``index`` says which), the key is wrong, there is no such model.
            Unavailable: the server does not answer, or is busy, for longer than ``retry_for``.
            ClipQueueError: any other failure.
        """
        call = batches.embedding("image", model, on_error, self._server.limits)
        self._send_all(call, batches.several(images, "image"), "images")
        return call.embeddings()

    def embed_texts(
        self,
        texts: str | Iterable[str],
        *,
        model: str | None = None,
        on_error: OnError = "fail",
        long_texts: LongTexts = "fail",
    ) -> Embeddings:
        """The vectors of texts, in order; otherwise as :meth:`embed_images`.

        Args:
            long_texts: ``fail``: a text that is longer than the model takes is bad; ``cut``: its beginning is embedded.
        """
        call = batches.embedding("text", model, on_error, self._server.limits, long_texts)
        self._send_all(call, batches.several(texts, "text"), "texts")
        return call.embeddings()

    @overload
    def compare(  # type: ignore[overload-overlap]  # a mapping is iterable too; it is meant as a mapping
        self,
        subject: Image | str,
        prompts: Mapping[str, Image | str],
        *,
        subject_type: Kind = ...,
        prompt_type: Kind = ...,
        model: str | None = ...,
    ) -> dict[str, float]: ...

    @overload
    def compare(
        self,
        subject: Image | str,
        prompts: Image | str | Iterable[Image | str],
        *,
        subject_type: Kind = ...,
        prompt_type: Kind = ...,
        model: str | None = ...,
    ) -> NDArray[np.float32]: ...

    def compare(
        self,
        subject: Any,
        prompts: Any,
        *,
        subject_type: Kind = "image",
        prompt_type: Kind = "text",
        model: str | None = None,
    ) -> Any:
        """The cosines of a subject with prompts: an array (prompts,), float32, or by name if the prompts have names.

        Args:
            subject: an image, or with ``subject_type="text"`` a text.
            prompts: texts, or with ``prompt_type="image"`` images: one, any number, or a mapping from their names.

        Raises: as :meth:`embed_images`.
        """
        names, values = batches.named(prompts, prompt_type)
        call = batches.comparison(subject, subject_type, prompt_type, model, self._server.limits)
        self._send_all(call, values, "prompts")
        return call.cosines() if names is None else dict(zip(names, call.cosines().tolist(), strict=True))

    def submit(self, task: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job: its body as ``POST /jobs`` takes it, where images may be whatever :meth:`embed_images` takes.

        ``idempotency_key``: jobs submitted with equal ones are one job. By default each call has its own, so that
        trying again does not make two jobs.

        Raises: as :meth:`embed_images`, and :class:`ValueError` for such a key or a number that cannot be sent.
        """
        steps = jobs.submit(task, idempotency_key, self._server.limits.body_bytes * 3 // 4)
        return Job(self, self._do(steps))

    def job(self, job_id: str) -> Job:
        """The job of an id, submitted with the same key at some time.

        Raises :class:`BadRequest` if there is none, and :class:`ValueError` for what cannot be an id.
        """
        return Job(self, self._do(jobs.look(job_id)))

    def close(self) -> None:
        """End what is in flight: such calls raise :class:`ClientClosed`. Closing again does nothing."""
        with self._lock:
            self._closed = True
            for stop in self._calls:
                stop.set()
        self._sockets.shut(for_good=True)
        if self._own:
            self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._server.url!r})"

    def _send_all(self, call: Batches, items: Iterable[object], what: str) -> None:
        """Send all parts of a call, some at a time, each in a thread."""
        most = self._server.concurrency
        with (
            self._call() as stop,
            bar(items, call.most, what, self._progress) as advanced,
            ThreadPoolExecutor(most, thread_name_prefix="clip-queue client") as pool,
        ):
            running: set[Future[list[Answered]]] = set()

            def take() -> None:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    running.remove(future)
                    call.add(future.result())
                advanced(call.done)

            try:
                for group in call.groups(items):
                    for part in call.parts(group):
                        running.add(pool.submit(self._run, call.ask(part), stop))
                        if len(running) == most:
                            take()
                while running:
                    take()
            except BaseException as error:
                stop.set()
                if not isinstance(error, Exception):  # Ctrl-C does not wait for the answers
                    self._sockets.shut()
                raise

    @contextlib.contextmanager
    def _call(self) -> Iterator[threading.Event]:
        """What is yielded is set when the client is closed."""
        stop = threading.Event()
        with self._lock:
            if self._closed:
                raise ClientClosed
            self._calls.add(stop)
        try:
            yield stop
        finally:
            with self._lock:
                self._calls.discard(stop)

    def _do(self, steps: Steps[T]) -> T:
        with self._call() as stop:
            return self._run(steps, stop)

    def _run(self, steps: Steps[T], stop: threading.Event) -> T:
        steps = persistent(steps, self._server.retry_for)
        outcome: Answer | ClipQueueError | None = None
        while True:
            step = advance(steps, outcome)
            if isinstance(step, Done):
                return step.value
            outcome = None
            if isinstance(step, Request):
                outcome = self._send(step, stop)
            else:
                self._pause(step, stop)

    def _pause(self, pause: Pause, stop: threading.Event) -> None:
        if stop.wait(pause.seconds):
            raise ClientClosed

    def _send(self, request: Request, stop: threading.Event) -> Answer | Unavailable:
        try:
            with self._open(request, stop) as response:
                response.read()
                return answer_of(response)
        except Unavailable as error:
            return error

    @contextlib.contextmanager
    def _open(self, request: Request, stop: threading.Event) -> Iterator[httpx.Response]:
        """The response to a request, to be read. Raises :class:`Unavailable`, also while it is read."""
        failure: ClipQueueError
        try:
            if stop.is_set():
                raise ClientClosed
            built = self._server.build(self._http, request)
            built.extensions = {**built.extensions, "trace": self._sockets.trace}
            response = self._http.send(built, auth=self._server.auth, stream=True)
            try:
                yield response
            finally:
                response.close()
            return
        except (httpx.HTTPError, httpx.StreamError, RuntimeError) as error:
            if stop.is_set():
                failure = ClientClosed()
            elif isinstance(error, httpx.HTTPError):
                failure = self._server.failure(error)
            else:
                raise
        raise failure  # not in the block above: httpx's error holds the request, and that the key


class Job(jobs.JobHandle):
    """A job that was submitted, as it was last seen (``id``, ``state``, ``document``)."""

    def __init__(self, client: Client, document: Document) -> None:
        super().__init__(document)
        self._client = client

    def refresh(self) -> Job:
        """Look at it now."""
        self.document = self._client._do(jobs.look(self.id))
        return self

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until it has ended, however. Raises :class:`StillRunning` after ``timeout`` seconds.

        Raises :class:`ValueError` for a timeout that is NaN.
        """
        self.document = self._client._do(jobs.wait(self.document, timeout))
        return self

    def result(self, timeout: float | None = None) -> Any:
        """Wait until it has ended: its :class:`Embeddings`, or what else a job of its kind results in.

        Raises:
            JobFailed: it has failed, was cancelled or has expired.
            StillRunning: it has not ended within ``timeout`` seconds.
            BadRequest: its result is not kept any more.
            ValueError: the timeout is NaN.
        """
        self.document = self._client._do(jobs.finished(self.document, timeout))
        return jobs.result(self.document)

    def cancel(self) -> bool:
        """Cancel it. False: it had ended before, otherwise."""
        self.document = self._client._do(jobs.cancel(self.id))
        return self.state == "cancelled"

    def events(self) -> Iterator[Document]:
        """Its document after each change of state or progress, until it has ended; what was missed is skipped."""
        client, stream = self._client, jobs.EventStream(self.id, self._client._server.retry_for)
        with client._call() as stop:
            while not stream.over():
                failure = None
                try:
                    with client._open(stream.request, stop) as response:
                        if not stream.accepts(response.status_code, response.headers):
                            response.read()
                            stream.refuse(answer_of(response))
                        for data in response.iter_bytes():
                            for self.document in stream.feed(data):
                                yield self.document
                            if stream.over():
                                return
                except Unavailable as error:
                    failure = error
                if not stream.over():
                    client._pause(stream.pause(failure), stop)


class _Sockets:
    """The sockets of a client's connections. Closing one wakes no thread that reads from it, shutting it down does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._over = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by httpcore with what a request does."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            found = info["return_value"].get_extra_info("socket")
            if isinstance(found, socket.socket):
                with self._lock:
                    self._open.add(found)
                    over = self._over
                if over:
                    self.shut()

    def shut(self, *, for_good: bool = False) -> None:
        """Shut all sockets down; ``for_good``: also those that are opened after this."""
        with self._lock:
            self._over = self._over or for_good
            sockets = list(self._open)
        for one in sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # not SSLSocket's, which a reader would stumble over
