"""A server of this process that answers as documented, and both faces of the client in front of it."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.client_faces import FACES, Face

Made = Callable[..., Face]


class FakeServer:
    """Embeds a text as (its length, 1) and an image as (the number of its bytes, 2). Texts and images that hold
    ``bad`` are refused.

    ``answers`` are given first, to whatever is asked; an exception among them is raised: there is no answer.
    """

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answers: list[httpx.Response | Exception] = []
        self.most = {"image": 8, "text": 256, "prompt": 8}
        self.max_body = 64 * 2**20
        self.proxy = False  # whether it is one that refuses large bodies
        self.delay = 0.0
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.requests.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            time.sleep(self.delay)
            if self.answers:
                answer = self.answers.pop(0)
                if isinstance(answer, Exception):
                    raise answer
                return answer
            return self._answer(request)
        finally:
            with self._lock:
                self.at_once -= 1

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if len(request.content) > self.max_body and self.proxy:
            return httpx.Response(413, text="<html>Request Entity Too Large")
        if len(request.content) > self.max_body:
            return error(413, f"The request body is larger than {self.max_body} bytes (setting max_body_bytes).")
        body = json.loads(request.content) if request.content else {}
        if request.url.path == "/clip/compare":
            return self._each(body, "prompt", "similarity", lambda item: float(size(item)))
        if request.url.path in ("/clip/embed_image", "/clip/embed_text"):
            kind = request.url.path.rpartition("_")[2]
            return self._each(body, kind, "embeddings", lambda item: [float(size(item)), 1.0 + (kind == "image")])
        raise AssertionError(request.url)

    def _each(self, body: dict[str, Any], field: str, values: str, compute: Callable[[Any], Any]) -> httpx.Response:
        items = body[field]
        if len(items) > self.most[field]:
            most = self.most[field]
            return error(400, f"Field '{field}' holds {len(items)} items; at most {most} fit in a request.")
        bad = [i for i, item in enumerate(items) if b"bad" in content(item)]
        if bad and (body.get("on_error") != "skip" or len(bad) == len(items)):
            index = {"index": bad[0]} if len(items) > 1 else {}
            return error(400, "It is bad.", **index)
        out: dict[str, Any] = {values: [None if i in bad else compute(item) for i, item in enumerate(items)]}
        if body.get("on_error") == "skip":
            out["errors"] = [{"code": "bad_item", "message": f"{i} is bad", "index": i} for i in bad]
        headers = {"X-Clip-Queue-Model": body.get("clip_version_id", "m"), "X-Clip-Queue-Fingerprint": "f"}
        return httpx.Response(200, json=out, headers=headers)

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.content) for request in self.requests]


def content(item: Any) -> bytes:
    return item.encode() if isinstance(item, str) else base64.b64decode(item["value"])


def size(item: Any) -> int:
    return len(content(item))


def error(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    return httpx.Response(status, json={"message": message, **more}, headers={"X-Request-Id": "r-1", **(headers or {})})


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture(params=FACES)
def make(request: pytest.FixtureRequest, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Makes faces of the client whose server is ``server``, with neither key nor URL in the environment."""
    for name in ("CLIP_QUEUE_URL", "CLIP_QUEUE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    made: list[Face] = []

    def make(**options: Any) -> Face:
        made.append(FACES[request.param](handler=server, **options))
        return made[-1]

    yield make
    for face in made:
        face.close()


@pytest.fixture
def face(make: Made) -> Face:
    return make()
