"""Each response has a request id, and each request that fails leaves one line in the log, without inputs or keys."""

from __future__ import annotations

import logging
import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clip_queue.shared import tracing

log = logging.getLogger(__name__)

HEADER = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class RequestLog:
    """ASGI middleware. Routes and error handlers set ``code`` and the number of ``items`` in ``request.state``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = next((value for name, value in scope["headers"] if name == HEADER), b"")
        if not _SANE.fullmatch(request_id):
            request_id = new_id()
        state = scope.setdefault("state", {})
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (HEADER, request_id)]
                if status >= 400:
                    write(scope, status, state.get("code", "http"), state.get("items", 0), request_id)
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception:
            if not status:  # the framework answers and logs the traceback
                write(scope, 500, "internal", state.get("items", 0), request_id)
            raise


def new_id() -> bytes:
    return secrets.token_hex(8).encode()


def write(scope: Scope, status: int, code: str, items: int, request_id: bytes) -> None:
    """Leave the line of a request that failed."""
    route = getattr(scope.get("route"), "path_format", "-")  # the template: a path may hold what is not for logs
    parts = (scope["method"], route, status, code, items, request_id.decode())
    names = ("method", "route", "status", "code", "items", "request_id")
    about = {**dict(zip(names, parts, strict=True)), "model": scope.get("state", {}).get("model")}
    about["trace_id"] = tracing.trace_id()
    log.warning("%s %s %d %s items=%d id=%s", *parts, extra=about)
