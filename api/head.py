"""HEAD, wherever there is GET: the same status and headers, and no body."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Head:
    """ASGI middleware. A stream of events ends once its headers are sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def headers_only(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif not answered.is_set():
                answered.set()
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def left() -> Message:
            """The request, then that the client has left: it has what it asked for."""
            if not answered.is_set():
                asking = asyncio.ensure_future(receive())
                waiting = asyncio.ensure_future(answered.wait())
                await asyncio.wait({asking, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if asking.done():
                    return asking.result()
                asking.cancel()
            return {"type": "http.disconnect"}

        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, left, headers_only)
        finally:
            if "route" in as_get:
                scope["route"] = as_get["route"]  # for the log
