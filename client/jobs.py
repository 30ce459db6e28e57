"""What is asked about a job: it is submitted, waited for, watched, cancelled, and its result is read."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import quote

from clip_queue.client import batches
from clip_queue.client.errors import NOT_OURS, BadRequest, ClipQueueError, JobFailed, StillRunning, Unavailable
from clip_queue.client.results import Embeddings, cosines, item_errors, matrix, text
from clip_queue.client.steps import Answer, Pause, Request, Retries, Steps, ask, ask_for

Document: TypeAlias = dict[str, Any]  # a job as the server shows it

ENDED = ("succeeded", "failed", "cancelled", "expired")
LONG_POLL = 30.0  # seconds that the server is asked to wait for a change
SHORT_POLL = 0.5  # seconds between two looks where it does not wait
RECONNECT = 1.0  # seconds after which a stream that ended without its job's end is asked for again
MAX_EVENT = 64 * 2**20  # bytes
SIGN_OF_LIFE = 10.0  # seconds after which the server sends one where there is no event
_NO_IDS = ("", ".", "..")  # in a URL they would be another path


class JobHandle:
    """A job that was submitted, as it was last seen.

    Attributes:
        document: the job as the server showed it (docs/http.md).
    """

    def __init__(self, document: Document) -> None:
        self.document = document

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def state(self) -> str:
        """``queued``, ``running``, ``succeeded``, ``failed``, ``cancelled`` or ``expired``."""
        return str(self.document["state"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self.state})"


def submit(task: Mapping[str, Any], idempotency_key: str | None, max_bytes: int) -> Steps[Document]:
    """Submit a job, once however often its request is sent: it has an idempotency key. Encodes its images at once."""
    key = uuid.uuid4().hex if idempotency_key is None else idempotency_key
    if not re.fullmatch(r"[!-~]([ -~]{0,198}[!-~])?", key):
        raise ValueError("An idempotency key has 1 to 200 printable ASCII characters.")
    request = Request("POST", "/jobs", to_body(task, max_bytes), headers={"Idempotency-Key": key})
    return _document(request)


def to_body(task: Mapping[str, Any], max_bytes: int) -> bytes:
    """A task as JSON. Its images, where a known task has them, are encoded; all else is sent as it is.

    Raises :class:`BadRequest` for an image that cannot be sent, :class:`TypeError` for what JSON cannot hold, and
    :class:`ValueError` for NaN and infinity, which would arrive as null.
    """
    for name, value in task.items():
        if not _is_finite(value):
            raise ValueError(f"The task's field {name!r} holds NaN or an infinite number, which JSON does not have.")
    fields = {name: value if name in _images_of(task) else batches.dumps(value) for name, value in task.items()}
    for name in _images_of(task) & fields.keys():
        fields[name] = _images(task[name], name == "prompt", max_bytes)
    return batches.to_body(fields)


def _is_finite(value: Any) -> bool:
    """Whether all numbers of a value are finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(_is_finite, value))


def _images_of(task: Mapping[str, Any]) -> set[str]:
    """The fields of a task that hold images."""
    kind = task.get("task")
    if kind == "embed_image":
        return {"image"}
    if kind != "compare":
        return set()
    defaults = {"subject": "image", "prompt": "text"}
    return {name for name, default in defaults.items() if task.get(f"{name}_type", default) == "image"}


def _images(value: Any, named: bool, max_bytes: int) -> bytes:
    if named and isinstance(value, Mapping) and not {"type", "value"} <= value.keys():
        return batches.to_body({name: _named(name, image, max_bytes) for name, image in value.items()})
    found = list(batches.several(value, "image"))
    encoded = []
    for index, image in enumerate(found):
        try:
            encoded.append(batches.to_json("image", image, max_bytes))
        except BadRequest as error:
            error.index = index
            raise
    one = len(found) == 1 and found[0] is value
    return encoded[0] if one else b"[" + b",".join(encoded) + b"]"


def _named(name: str, image: object, max_bytes: int) -> bytes:
    try:
        return batches.to_json("image", image, max_bytes)
    except BadRequest as error:
        raise BadRequest(f"Prompt {name!r}: {error.message}", code=error.code) from error


def look(job_id: str, wait: float = 0.0) -> Steps[Document]:
    """A job's document. ``wait``: seconds that the server may wait for its state to change.

    Raises :class:`ValueError` for what cannot be an id.
    """
    params = {"wait": f"{wait:.3f}"} if wait else {}
    return _document(Request("GET", _path(job_id), params=params, patience=wait))


def _document(request: Request) -> Steps[Document]:
    answer = yield from ask_for(request)
    return _job(answer)


def _job(answer: Answer) -> Document:
    found = answer.json()
    if not isinstance(found.get("id"), str) or found["id"] in _NO_IDS or not isinstance(found.get("state"), str):
        raise answer.unexpected
    return found


def wait(document: Document, timeout: float | None) -> Steps[Document]:
    """The document of a job that has ended.

    Raises :class:`StillRunning` after ``timeout`` seconds; None: there is no limit but the job's own deadline.
    Raises :class:`ValueError` for NaN, after which no time ever is.
    """
    if timeout is not None and math.isnan(timeout):
        raise ValueError("timeout is a number of seconds, or None: no limit.")
    until = None if timeout is None else time.monotonic() + timeout
    while document["state"] not in ENDED:
        began = time.monotonic()
        left = LONG_POLL if until is None else until - began
        if left <= 0:
            raise StillRunning(f"Job {document['id']} is {document['state']} after {timeout:g} s.")
        before = document["state"]
        document = yield from look(document["id"], min(LONG_POLL, left))
        if document["state"] == before and time.monotonic() - began < min(SHORT_POLL, left):
            yield Pause(min(SHORT_POLL, left))  # a server that does not wait
    return document


def cancel(job_id: str) -> Steps[Document]:
    """Cancel a job; its document afterwards. One that has ended before stays as it is."""
    answer = yield from ask(Request("DELETE", _path(job_id)))
    if answer.status == 409:  # it has ended; perhaps by the same request, sent before
        return (yield from look(job_id))
    if answer.status != 200:
        raise answer.error
    return _job(answer)


def finished(document: Document, timeout: float | None) -> Steps[Document]:
    """The document of a job that has ended, with its result if it has one. Raises as :func:`wait` does."""
    document = yield from wait(document, timeout)
    if document["state"] == "succeeded" and document.get("result") is None:  # as in an event
        document = yield from look(document["id"])
    return document


def result(document: Document) -> Any:
    """The result of a job that has ended: :class:`Embeddings`; cosines, an array (n,) or by name; or what it is.

    Raises :class:`JobFailed` if it has none, and :class:`ClipQueueError` if no clip-queue server wrote it.
    """
    error = document.get("error") or {}
    found = document.get("result") or {}
    if not isinstance(error, dict) or not isinstance(found, dict):
        raise ClipQueueError(NOT_OURS)
    if document["state"] != "succeeded":
        message, why = f"Job {document['id']} is {document['state']}", text(error.get("message"))
        index = error.get("index")
        raise JobFailed(
            f"{message}: {why}" if why else f"{message}.",
            state=document["state"],
            code=text(error.get("code")) or None,
            index=index if type(index) is int else None,
        )
    if isinstance(rows := found.get("embeddings"), list):
        fingerprint = text(document.get("fingerprint"))
        return Embeddings(
            matrix(rows),
            item_errors(found.get("errors"), len(rows)),
            text(document.get("model")),
            (fingerprint,) if fingerprint else (),
        )
    if isinstance(similarity := found.get("similarity"), list):
        return cosines(similarity)
    return found.get("similarity", found)


class EventStream:
    """A job's stream of events, over as many connections as it takes.

    Whoever has the connection asks for ``request``, gives the bytes of an answer that it ``accepts`` to ``feed``, any
    other answer to ``refuse``, and what ended it to ``pause``, until it is ``over``.
    """

    def __init__(self, job_id: str, retry_for: float) -> None:
        self._path = f"{_path(job_id)}/events"
        self._retries = Retries(retry_for)
        self._asked = 0.0
        self._last = ""
        self._buffer = b""
        self._over = False

    def over(self) -> bool:
        """Whether the last event has come: no other will follow."""
        return self._over

    @property
    def request(self) -> Request:
        self._buffer = b""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._last} if self._last else {})
        return Request("GET", self._path, headers=headers, patience=SIGN_OF_LIFE)

    def accepts(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether an answer is a stream of events."""
        return status == 200 and headers.get("content-type", "").partition(";")[0].strip() == "text/event-stream"

    def refuse(self, answer: Answer) -> None:
        """Raises :class:`ClipQueueError`, except for 204: the job has ended, and its last event was seen."""
        self._over = answer.status == 204
        if not self._over:
            self._asked = answer.retry_after
            raise answer.unexpected if answer.status == 200 else answer.error

    def feed(self, data: bytes) -> Iterator[Document]:
        """The documents that are complete with these bytes."""
        self._buffer += data.replace(b"\r", b"")
        *events, self._buffer = self._buffer.split(b"\n\n")
        if len(self._buffer) > MAX_EVENT:
            raise ClipQueueError(f"An event is longer than {MAX_EVENT} bytes.")
        for event in events:
            fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line)
            if b"data" in fields:
                document = _job(Answer(200, {}, fields[b"data"]))
                self._retries.reset()
                self._last = fields.get(b"id", b"").decode("latin-1")
                self._over = document["state"] in ENDED
                yield document

    def pause(self, error: ClipQueueError | None) -> Pause:
        """The pause before the next connection, after ``error`` or a stream's end. Raises an error that is for good."""
        if error is None:
            return Pause(RECONNECT)
        pause = self._retries.pause(self._asked) if isinstance(error, Unavailable) else None
        if pause is None:
            raise error
        return pause


def _path(job_id: str) -> str:
    if job_id in _NO_IDS:
        raise ValueError(f"{job_id!r} is no job's id.")
    return f"/jobs/{quote(job_id, safe='')}"
