"""No input gives a 5xx: hypothesis makes requests of all routes, near to good ones and far from them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_queue.api.requests import HEART
from clip_queue.shared.errors import BadImage
from clip_queue.shared.fetch import Fetcher
from clip_queue.shared.settings import Settings

from .service import BAD, Service, serve


class Nowhere(Fetcher):
    """Checks each URL as ever, and fetches none."""

    async def get(self, url: str) -> bytes:
        self._policy.check(url)
        raise BadImage.because("nowhere")


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[asyncio.Runner, Service]]:
    with asyncio.Runner() as runner:
        manager = serve(fetcher=Nowhere(Settings()), max_body_bytes=20_000, request_timeout=5.0, max_wait=0.1)
        yield runner, runner.run(manager.__aenter__())
        runner.run(manager.__aexit__(None, None, None))


TEXTS = st.text(st.characters(exclude_categories=()), max_size=20) | st.just(BAD)  # halves of surrogate pairs too
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**20), 1e-320])
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
URLS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["https://", "http://", "HTTPS:", "file:///", "https://xn--", "https://[::1", "//"]),
    st.sampled_from(["a.com", "a", "xn--zz99.com", "é.com", "127.0.0.1", "10.0x1", "u:p@a.b"]) | TEXTS,
    st.sampled_from(["", ":0", ":443", ":99999", ":x", ":" + "9" * 5000]),
    st.sampled_from(["/", "", "/?x#y"]) | TEXTS,
)
VALUES = URLS | TEXTS | st.sampled_from([HEART, HEART[:-7], "data:;base64," + HEART, "data:x/y;base64,", "%%%", ""])
IMAGES = st.fixed_dictionaries({"type": st.sampled_from(["url", "base64", "URL", "numpy"]), "value": VALUES}) | VALUES
ITEMS = IMAGES | TEXTS | JUNK
SEVERAL = ITEMS | st.lists(ITEMS, max_size=10) | st.dictionaries(TEXTS | st.sampled_from(["type", "value"]), ITEMS)
TYPES = st.sampled_from(["image", "text"]) | JUNK
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "task": st.sampled_from(["embed_image", "embed_text", "compare"]) | JUNK,
        "image": SEVERAL,
        "text": SEVERAL,
        "subject": ITEMS,
        "prompt": SEVERAL,
        "subject_type": TYPES,
        "prompt_type": TYPES,
        "clip_version_id": st.sampled_from(["emoji-mini", "ViT-B-16"]) | JUNK,
        "on_error": st.sampled_from(["skip", "fail"]) | JUNK,
        "priority": st.sampled_from(["background", "interactive"]) | JUNK,
        "deadline_s": NUMBERS | JUNK,
        "api_key": JUNK,
        "meta": JUNK,
    },
)
TASKS = st.sampled_from(["/clip/embed_image", "/clip/embed_text", "/clip/compare", "/jobs"])
# 503 is the answer for a model that no worker serves: the one that is meant.
MEANT = "No live worker serves model 'ViT-B-16'"
few = settings(
    max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def send(running: tuple[asyncio.Runner, Service], method: str, url: str, **more: Any) -> None:
    runner, service = running

    async def ask() -> httpx.Response:
        return await service.http.request(method, url, **more)

    response = runner.run(ask())
    assert response.status_code < 500 or MEANT in response.text, (method, url, more, response.text)
    assert len(response.content) < 100_000


@few
@given(path=TASKS, body=BODIES, ascii_only=st.booleans())
def test_bodies_of_json(running: tuple[asyncio.Runner, Service], path: str, body: Any, ascii_only: bool) -> None:
    content = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    send(running, "POST", path, content=content)


@few
@given(path=TASKS, content=st.binary(max_size=200), encoding=st.sampled_from(["", "gzip", "br", "identity"]))
def test_bodies_of_bytes(running: tuple[asyncio.Runner, Service], path: str, content: bytes, encoding: str) -> None:
    send(running, "POST", path, content=content, headers={"Content-Encoding": encoding} if encoding else {})


@few
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT"]),
    path=st.sampled_from(["/", "/jobs", "/jobs/{}", "/jobs/{}/result", "/jobs/{}/events", "/model/registry", "/info"]),
    job=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/?#"), min_size=1, max_size=40),
    query=st.dictionaries(
        st.sampled_from(["wait", "limit", "cursor", "state", "api_key"]),
        st.text(st.characters(exclude_categories=("Cs",)), max_size=30) | NUMBERS.map(str),
    ),
)
def test_paths_and_queries(
    running: tuple[asyncio.Runner, Service], method: str, path: str, job: str, query: dict[str, str]
) -> None:
    send(
        running,
        method,
        path.format(quote(job, safe="")),
        params=query,
        headers={"Last-Event-ID": "x", "Idempotency-Key": "k"},
    )
