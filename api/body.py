"""A request's body: bounded, JSON whatever its Content-Type says, and checked without ever echoing it."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from clip_queue.api.keys import owner
from clip_queue.shared.errors import TooLarge
from clip_queue.shared.settings import Settings

T = TypeVar("T")


async def read(request: Request, settings: Settings, adapter: TypeAdapter[T]) -> tuple[T, str]:
    """The body as ``adapter``'s type, and the owner of the key that came with it.

    Raises:
        Unauthorized, TooLarge, RequestValidationError: in this order of precedence, but for the size, which
            is checked while reading.
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
    tenant = owner(request, settings, data.get("api_key") if isinstance(data, dict) else None)
    if problem:
        raise RequestValidationError([{"loc": ("body",), "msg": problem, "type": "json_invalid"}])
    try:
        return adapter.validate_python(data), tenant
    except ValidationError as error:
        raise invalid(error) from None


async def read_bytes(request: Request, limit: int) -> bytes:
    """Raises :class:`TooLarge`, before reading where the length was announced."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
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
    """A schema error for a 422, its places counted from the body."""
    return RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_input=False)])
