"""A request's body: limited in size, read as JSON whatever its Content-Type is, and never quoted in an error."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from clip_queue.api import json_body
from clip_queue.api.gzip_body import gunzip
from clip_queue.api.keys import accepts, authenticate, key_of
from clip_queue.shared import tracing
from clip_queue.shared.errors import BadInput, TooLarge, TooSlow, Unauthorized, Unavailable, UnsupportedEncoding
from clip_queue.shared.settings import Settings

T = TypeVar("T")

LARGE = 256 * 1024  # bytes from which a body is read as JSON in a thread
HEAD = 64 * 1024  # bytes of a large body in which its key must be
_KEY = re.compile(rb'"api_key"\s*:\s*"([^"\\]*)"')


class BodyBudget:
    """The bytes of all bodies that a process is receiving and reading.

    Args:
        limit: the most bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """What is yielded holds bytes until the context ends. It raises :class:`Unavailable` if there are too many."""
        own = 0

        def hold(size: int) -> None:
            nonlocal own
            if self._held + size > self._limit:
                limit = f"{self._limit} bytes (setting max_total_body_bytes)"
                raise Unavailable(
                    f"The bodies of the requests under way are more than {limit}; try again.", retry_after=2
                )
            own += size
            self._held += size

        try:
            yield hold
        finally:
            self._held -= own


async def read(request: Request, settings: Settings, adapter: TypeAdapter[T]) -> tuple[T, str]:
    """The body as ``adapter``'s type, and the owner that the request's key stands for.

    A key in the query or the header is checked before anything is read.

    Raises:
        TooLarge: the body is larger than ``max_body_bytes``, as it is sent or as it is decompressed.
        TooSlow: it does not arrive, or too slowly.
        UnsupportedEncoding: it is compressed in a way other than gzip.
        Unavailable: the process receives more than ``max_total_body_bytes``.
        Unauthorized: no accepted key came with the request. The key may be in the body (:func:`_read_bytes`).
        BadInput: it is nested too deeply.
        RequestValidationError: the body is not what ``adapter`` describes.
    """
    keyless = bool(settings.api_keys) and not key_of(request, settings)
    if not keyless:
        authenticate(request, settings)
    budget: BodyBudget = request.app.state.body_budget
    with budget.request() as hold, tracing.stage("read"):
        raw = await _read_bytes(request, settings, keyless, hold)
        return await _validated(request, settings, adapter, raw)


async def _validated(request: Request, settings: Settings, adapter: TypeAdapter[T], raw: bytes) -> tuple[T, str]:
    """A whole body as ``adapter``'s type, and its owner."""
    problem, too_deep = "", False
    data: Any = None
    try:
        data = await asyncio.to_thread(json_body.loads, raw) if len(raw) > LARGE else json_body.loads(raw)
        if not isinstance(data, dict):
            problem = "The body must be a JSON object."
    except (json_body.NotJson, BadInput) as error:  # not kept: it refers to this frame, and the body in it
        problem, too_deep = str(error), isinstance(error, BadInput)
    owner = authenticate(request, settings, data.get("api_key") if isinstance(data, dict) else None)
    if too_deep:
        raise BadInput(problem)
    if problem:
        raise RequestValidationError([{"loc": ("body",), "msg": problem, "type": "json_invalid"}])
    try:
        return adapter.validate_python(data), owner
    except ValidationError as error:
        raise invalid(error) from None


async def _read_bytes(request: Request, settings: Settings, keyless: bool, hold: Callable[[int], None]) -> bytes:
    """The whole body, decompressed. An announced length over the limit is refused before anything is read.

    Args:
        keyless: neither query nor header has a key, and there must be one. Then more than ``max_keyless_bytes`` are
            read only if an accepted key is in the first 64 KiB, where the clients of Roboflow Inference put it.
    """
    encoding, announced = "identity", ""
    for name, value in reversed(request.scope["headers"]):  # one look; each of `request.headers` would be another
        if name == b"content-encoding":
            encoding = value.decode("latin-1").strip().lower()
        elif name == b"content-length":
            announced = value.decode("latin-1")
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise UnsupportedEncoding("Content-Encoding may be gzip or identity.", accept="gzip, identity")
    limit = settings.max_body_bytes
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
        raise _too_large(limit)
    expected = int(announced) if announced.isdecimal() else -1  # nothing is waited for once it is here
    body = bytearray()
    clock = BodyTime(settings)
    try:
        async with clock.timer:
            async for chunk in request.stream():
                hold(len(chunk))
                body += chunk
                if len(body) != expected:
                    clock.came(len(body))
                if len(body) > limit:
                    raise _too_large(limit)
                if keyless and len(body) > min(HEAD, settings.max_keyless_bytes):
                    found = _KEY.search(body, 0, HEAD)
                    if found and accepts(settings, found[1].decode("utf-8", "replace")):
                        keyless = False
                    elif len(body) > settings.max_keyless_bytes:
                        raise _unauthorized(settings)
    except TimeoutError:
        raise clock.error() from None
    if not encoding.endswith("gzip"):
        return bytes(body)
    longest = min(limit, settings.max_keyless_bytes) if keyless else limit
    raw = await asyncio.to_thread(gunzip, body, longest)
    if len(raw) > longest:
        raise _unauthorized(settings) if keyless else _too_large(limit)
    hold(len(raw))
    return raw


class BodyTime:
    """The time that a body has: ``client_timeout`` from one byte to the next, and so much that ``min_client_rate`` is
    kept on average; the first ``client_timeout`` does not count.
    """

    def __init__(self, settings: Settings) -> None:
        self._silence, self._rate = settings.client_timeout, settings.min_client_rate
        self._clock = asyncio.get_running_loop().time
        self._first = self._clock() + self._silence
        self.timer = asyncio.timeout_at(self._first)

    def came(self, size: int) -> None:
        """So many bytes have come by now."""
        at = self._clock() + self._silence
        self.timer.reschedule(min(at, self._first + size / self._rate) if self._rate else at)

    def error(self) -> TooSlow:
        """What is raised once the time is over."""
        return TooSlow(
            f"The body did not arrive in time: no byte for {self._silence:g} s (setting client_timeout), or fewer than "
            f"{self._rate:g} bytes a second (setting min_client_rate)."
        )


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request body is larger than {limit} bytes (setting max_body_bytes).")


def _unauthorized(settings: Settings) -> Unauthorized:
    return Unauthorized(
        f"Unauthorized api_key: a body of more than {settings.max_keyless_bytes} bytes (setting max_keyless_bytes) "
        f"has its key in its first {HEAD} bytes, or the query or the Authorization header has it."
    )


def invalid(error: ValidationError) -> RequestValidationError:
    """The error of a 422 response, with its locations relative to the request."""
    return RequestValidationError(
        [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_input=False, include_url=False)]
    )
