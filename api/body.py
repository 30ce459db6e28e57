"""A request's body: limited in size, read as JSON whatever its Content-Type is, and never quoted in an error."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from clip_queue.api.keys import authenticate
from clip_queue.shared.errors import TooLarge
from clip_queue.shared.settings import Settings

T = TypeVar("T")


async def read(request: Request, settings: Settings, adapter: TypeAdapter[T]) -> tuple[T, str]:
    """The body as ``adapter``'s type, and the owner that the request's key stands for.

    Raises:
        TooLarge: the body is larger than ``max_body_bytes``. This is checked first, while the body is read.
        Unauthorized: no accepted key came with the request. The key may be in the body.
        RequestValidationError: the body is not what ``adapter`` describes.
    """
    raw = await read_bytes(request, settings.max_body_bytes)
    problem: str | None = None
    data: Any = None
    try:
        data = orjson.loads(raw)
        if not isinstance(data, dict):
            problem = "The body must be a JSON object."
    except orjson.JSONDecodeError:
        problem = "The body is not valid JSON."
    owner = authenticate(request, settings, data.get("api_key") if isinstance(data, dict) else None)
    if problem:
        raise RequestValidationError([{"loc": ("body",), "msg": problem, "type": "json_invalid"}])
    try:
        return adapter.validate_python(data), owner
    except ValidationError as error:
        raise invalid(error) from None


async def read_bytes(request: Request, limit: int) -> bytes:
    """The whole body. Raises :class:`TooLarge`, before anything is read if the announced length is over ``limit``."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request body is larger than {limit} bytes (setting max_body_bytes).")


def invalid(error: ValidationError) -> RequestValidationError:
    """The error of a 422 response, with its locations relative to the request."""
    return RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_input=False)])
