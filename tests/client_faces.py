"""The blocking and the asynchronous client behind one face, so that a test is written once for both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from clip_queue import AsyncClient, Client

Handler = Callable[[httpx.Request], httpx.Response]
URL = "http://clip.test"


class Sync:
    """``handler`` answers in the server's place, if there is one."""

    def __init__(self, url: str = URL, handler: Handler | None = None, **options: Any) -> None:
        self.http = httpx.Client(transport=httpx.MockTransport(handler) if handler else None, trust_env=False)
        self.client: Any = Client(url, http=self.http, **options)

    def do(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a method of the client, or of a job, returns; of a generator a list."""
        found = call(*args, **options)
        return list(found) if inspect.isgenerator(found) else found

    def close(self) -> None:
        self.client.close()
        self.http.close()


class Async:
    def __init__(self, url: str = URL, handler: Handler | None = None, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.http = httpx.AsyncClient(transport=httpx.MockTransport(handler) if handler else None, trust_env=False)
        self.client: Any = AsyncClient(url, http=self.http, **options)

    def do(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        found = call(*args, **options)
        if inspect.isasyncgen(found):

            async def collect() -> list[Any]:
                return [one async for one in found]

            return self.runner.run(collect())
        return self.runner.run(found) if isinstance(found, Coroutine) else found

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.run(self.http.aclose())
        self.runner.close()


Face = Sync | Async
FACES: dict[str, type[Sync] | type[Async]] = {"blocking": Sync, "asynchronous": Async}
