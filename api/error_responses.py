"""Errors as HTTP responses: ``{"message": …}``, and for 422 ``{"detail": […]}``, which never quotes the input."""

from __future__ import annotations

import logging
import math
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from clip_queue.shared.errors import ClipError

log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    app.add_exception_handler(ClipError, _clip_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _unexpected)


def _json(status: int, content: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


async def _clip_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ClipError)
    content: dict[str, Any] = {"message": error.message}
    if error.index is not None:
        content["index"] = error.index
    headers = {"Retry-After": str(math.ceil(error.retry_after))} if error.retry_after else None
    return _json(error.status, content, headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Only these three fields: the others may quote the input, which can be an API key or a megabyte of base64.
    detail = [{"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in error.errors()]
    return _json(422, {"detail": detail})


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json(error.status_code, {"message": error.detail}, dict(error.headers or {}))


async def _disconnected(_: Request, __: Exception) -> Response:
    # Nobody receives this response. Without it, the log would have a traceback for each caller that left too early.
    return _json(400, {"message": "The connection was closed before the end of the body."})


async def _unexpected(_: Request, __: Exception) -> Response:
    # The framework logs the traceback. The response contains nothing of it.
    return _json(500, {"message": "Internal error; the server's log has the details."})
