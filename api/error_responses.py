"""Errors as HTTP responses: ``{"message": …}``, and for 422 ``{"detail": […]}``, which never quotes the input."""

from __future__ import annotations

import math
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from clip_queue.shared.errors import ClipError, TooSlow, UnsupportedEncoding

MAX_DETAILS = 20  # errors of the schema that a response lists
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def install(app: FastAPI) -> None:
    app.add_exception_handler(ClipError, _clip_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _unexpected)


def _json(status: int, content: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


async def _clip_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ClipError)
    request.state.code = error.code
    content: dict[str, Any] = {"message": error.message}
    if error.index is not None:
        content["index"] = error.index
    headers = {"Retry-After": str(math.ceil(error.retry_after))} if error.retry_after else {}
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = error.accept
    if isinstance(error, TooSlow):
        headers["Connection"] = "close"  # what else comes would be taken for the next request
    return _json(error.status, content, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    request.state.code = "invalid"
    errors = error.errors()
    # Only these three fields: the others may quote the input, which can be an API key or a megabyte of base64.
    detail = [{"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in errors[:MAX_DETAILS]]
    more = {"errors": len(errors)} if len(errors) > MAX_DETAILS else {}
    return _json(422, {"detail": detail, **more})


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(allowed(request))
    return _json(error.status_code, {"message": error.detail}, headers)


def allowed(request: Request) -> list[str]:
    """The methods that the path of a request has, over all routes; HEAD is answered where GET is."""
    found = [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
    return sorted({*found, "HEAD"}) if "GET" in found else found


async def _disconnected(request: Request, __: Exception) -> Response:
    # Nobody receives this response. Without it, the log would have a traceback for each caller that left too early.
    request.state.code = "disconnected"
    return _json(400, {"message": "The connection was closed before the end of the body."})


async def _unexpected(_: Request, __: Exception) -> Response:
    # The framework logs the traceback. The response contains nothing of it.
    return _json(500, {"message": "Internal error; the server's log has the details."})
