"""The routes that applications wait for, without what the framework does for each request of a route of its own.

Their functions take a request and return a response, so they need no parameters solved and no model written. FastAPI's own
routes stay behind them: the documentation is made from those.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Match, Route
from starlette.types import Scope


class PlainRoute(Route):
    """A route that says in the scope, as FastAPI's do, which one was taken: for metrics and the log."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is not Match.NONE:
            child["route"] = self
        return match, child


def install(app: FastAPI, router: APIRouter) -> None:
    """Answer the routes of ``router`` first and plainly. Each must take a :class:`Request` and nothing else."""
    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    for route in routes:
        assert not route.dependant.dependencies
        assert route.dependant.request_param_name
    app.router.routes[:0] = [PlainRoute(r.path, r.endpoint, methods=list(r.methods), name=r.name) for r in routes]

