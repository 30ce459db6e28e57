"""The application's class: a key in a request's query leaves the address before anything looks at it.

Clients of Roboflow's service send ``?api_key=…``. Access logs, spans and what instruments applications show addresses,
and the framework makes its span before any middleware.
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

KEY = "clip_queue.query_key"  # the scope's entry that has the key
HIDDEN = frozenset({"api_key", "service_secret"})  # what no address shows, in any case


class Application(FastAPI):
    """ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("query_string"):
            take_key(scope)
        path, root = scope.get("path", ""), scope.get("root_path", "").rstrip("/")
        if path.endswith("/") or path == root:
            # Answered as without the slash. The framework would redirect, to an address that has lost the key.
            bare = path.rstrip("/")
            scope["path"] = f"{root}/" if bare == root else bare
        await super().__call__(scope, receive, send)


def below_root(scope: Scope) -> str:
    """The path of a request without the prefix (``root_path``) under which the application is served."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def take_key(scope: Scope) -> None:
    """Take the key out of the query, and what else is secret; what is left stays byte for byte as it was."""
    kept = []
    for part in scope["query_string"].split(b"&"):
        name, value = next(iter(parse_qsl(part.decode("latin-1"), keep_blank_values=True)), ("", ""))
        if name.lower() not in HIDDEN:
            kept.append(part)
        elif name == "api_key":
            scope[KEY] = value
    scope["query_string"] = b"&".join(kept)
