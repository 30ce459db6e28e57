"""Errors as HTTP responses: ``{"message": …, "code": …}``, and for 422 ``{"detail": […]}``. No input is quoted.

A route that speaks another service's wire has errors of a form of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from clip_queue.api.application import below_root
from clip_queue.shared.errors import ClipError, TooSlow, Unauthorized, UnsupportedEncoding

MAX_DETAILS = 20  # errors of the schema that a response lists
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Failure:
    """What an error response tells. ``problems`` are those of the schema, if it is about them."""

    status: int
    code: str
    message: str
    index: int | None = None
    problems: list[dict[str, Any]] = field(default_factory=list)


Form = Callable[[Failure], tuple[int, dict[str, Any]]]
"""From an error to the status and the body of its response."""


def install(app: FastAPI, forms: Mapping[str, Form]) -> None:
    """Answer errors. ``forms`` are those of the paths, and of what is below them, that have one of their own."""
    app.state.error_forms = forms
    app.add_exception_handler(ClipError, _clip_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _unexpected)


def _respond(request: Request, failure: Failure, headers: dict[str, str] | None = None) -> Response:
    """The response in the form of the request's path."""
    path = below_root(request.scope)
    forms: Mapping[str, Form] = request.app.state.error_forms
    form = next((form for start, form in forms.items() if path == start or path.startswith(f"{start}/")), _plain)
    status, content = form(failure)
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def _plain(failure: Failure) -> tuple[int, dict[str, Any]]:
    if failure.problems:
        more = {"errors": len(failure.problems)} if len(failure.problems) > MAX_DETAILS else {}
        return failure.status, {"detail": failure.problems[:MAX_DETAILS], **more}
    index = {} if failure.index is None else {"index": failure.index}
    return failure.status, {"message": failure.message, "code": failure.code, **index}


async def _clip_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ClipError)
    request.state.code = error.code
    headers = {"Retry-After": str(math.ceil(error.retry_after))} if error.retry_after else {}
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = error.accept
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"  # not Basic, for which browsers would open a dialog over the page
    if isinstance(error, TooSlow):
        headers["Connection"] = "close"  # what else comes would be taken for the next request
    return _respond(request, Failure(error.status, error.code, error.message, error.index), headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    request.state.code = "invalid"
    # Only these three fields: the others may quote the input, which can be an API key or a megabyte of base64.
    problems = [{"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in error.errors()]
    where = ".".join(map(str, problems[0]["loc"][1:]))
    message = f"{where}: {problems[0]['msg']}" if where else str(problems[0]["msg"])
    return _respond(request, Failure(422, "invalid", message, problems=problems))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(allowed(request))
    return _respond(request, Failure(error.status_code, "http", error.detail), headers)


def allowed(request: Request) -> list[str]:
    """The methods that the path of a request has, over all routes; HEAD is answered where GET is."""
    found = [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
    return sorted({*found, "HEAD"}) if "GET" in found else found or ["GET", "HEAD"]  # the last: a mount of files


async def _disconnected(request: Request, __: Exception) -> Response:
    # Nobody receives this response. Without it, the log would have a traceback for each caller that left too early.
    request.state.code = "disconnected"
    return _respond(request, Failure(400, "disconnected", "The connection was closed before the end of the body."))


async def _unexpected(request: Request, __: Exception) -> Response:
    # The framework logs the traceback. The response contains nothing of it.
    return _respond(request, Failure(500, "internal", "Internal error; the server's log has the details."))
