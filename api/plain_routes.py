"""The routes that applications wait for, without what the framework does for each request of a route of its own.

Their functions take a request and return a response, so they need no parameters solved and no model written, and one
look finds them. FastAPI's own routes stay behind: the documentation is made from those, and they answer where a path
has a prefix, the method is another, or the framework has more to tell of a request than a span (metrics, logs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from clip_queue.shared import tracing


class PlainRoutes:
    """ASGI middleware, the innermost one.

    Args:
        routes: each takes a :class:`Request` and nothing else.
        handlers: the application's handlers of exceptions.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[APIRoute], handlers: Mapping[Any, Any]) -> None:
        self._app = app
        self._routes = {("POST", route.path): route for route in routes}
        known = {kind: handler for kind, handler in handlers.items() if kind not in (500, Exception)}
        self._plain = ExceptionMiddleware(_answer, known)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope.get("method", ""), scope.get("path", "")))
        told = scope.get("fastapi.telemetry")
        if route is None or scope.get("root_path") or (told and not tracing.ours()):
            await self._app(scope, receive, send)
            return
        if told:
            tracing.request_is("POST", route.path)
        scope["route"] = route  # for metrics and the log
        await self._plain(scope, receive, send)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    response = await scope["route"].endpoint(Request(scope, receive, send))
    await response(scope, receive, send)


def plain(router: APIRouter) -> list[APIRoute]:
    """The routes of a router, which must be such that they can be answered plainly."""
    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    for route in routes:
        assert route.methods == {"POST"}
        assert not route.dependant.dependencies
        assert route.dependant.request_param_name
    return routes
