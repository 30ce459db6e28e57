"""The routes that are answered before the framework's own: nobody can tell which of the two has answered."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, Request, Response
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from clip_queue.api import app, clip
from clip_queue.api.plain_routes import plain
from clip_queue.api.requests import HEART
from clip_queue.shared import tracing

from .service import Service, serve

HEART_IMAGE = {"type": "base64", "value": HEART}
BODIES: dict[str, dict[str, Any]] = {
    "/clip/embed_text": {"text": ["a", "four"]},
    "/clip/embed_image": {"image": HEART_IMAGE},
    "/clip/compare": {"subject": HEART_IMAGE, "prompt": ["cat", "dog"]},
}


@pytest.fixture
def by_framework(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths whose requests the framework's router gets."""
    paths: list[str] = []

    def seen(self: Any, scope: Any, receive: Any, send: Any) -> Any:
        paths.append(scope["path"])
        return routed(self, scope, receive, send)

    routed = APIRouter.__call__
    monkeypatch.setattr(APIRouter, "__call__", seen)
    return paths


def told(response: httpx.Response) -> tuple[int, Any, list[str]]:
    """What a response says, without ids and times."""
    body = response.json()
    for name in ("inference_id", "time"):
        body.pop(name, None)
    return response.status_code, body, sorted(response.headers)


@pytest.mark.parametrize("path", BODIES)
async def test_a_route_under_a_prefix_is_answered_alike(service: Service, by_framework: list[str], path: str) -> None:
    under = httpx.ASGITransport(service.app, root_path="/door")
    async with httpx.AsyncClient(transport=under, base_url="http://test") as prefixed:
        for body in (BODIES[path], {}, {**BODIES[path], "clip_version_id": "unknown"}):
            short = await service.http.post(path, json=body)
            assert by_framework == []
            assert told(await prefixed.post("/door" + path, json=body)) == told(short)
            assert by_framework == ["/door" + path]
            by_framework.clear()
    counted = (await service.http.get("/metrics")).text
    assert f'clip_queue_requests_total{{code="",method="POST",route="{path}",status="200"}} 2.0' in counted


@pytest.mark.parametrize("path", BODIES)
async def test_an_unexpected_error_is_the_frameworks(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(clip, "ask", broken)
    with caplog.at_level(logging.WARNING):
        response = await service.http.post(path, json=BODIES[path])
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "a secret" not in response.text
    assert f"POST {path} 500 internal items=0" in caplog.text


@pytest.mark.parametrize("path", BODIES)
async def test_its_span_is_as_the_frameworks_route_would_have_it(
    monkeypatch: pytest.MonkeyPatch, by_framework: list[str], path: str
) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    config = {"tracer_provider": provider, "metrics": False, "logs": False, "operation_spans": False}
    monkeypatch.setattr(app, "telemetry", lambda: config)
    said: dict[bool, list[Any]] = {}
    async with serve() as service:
        for ours in (True, False):
            monkeypatch.setattr(tracing, "ours", lambda ours=ours: ours)
            for body in (BODIES[path], {}, {**BODIES[path], "clip_version_id": "unknown"}):
                await service.http.post(path, json=body)
            assert by_framework == ([] if ours else [path] * 3)
            spans = kept.get_finished_spans()
            said[ours] = [(span.name, dict(span.attributes or {}), span.status.status_code) for span in spans]
            kept.clear()
    assert said[True] == said[False]
    assert [(name, about["http.route"]) for name, about, _ in said[True]] == [(f"POST {path}", path)] * 3
    assert [about["http.response.status_code"] for _, about, _ in said[True]] == [200, 422, 404]


def test_only_what_takes_a_request_can_be_answered_plainly() -> None:
    async def nothing() -> None: ...

    async def asked(request: Request) -> Response:
        return Response(request.url.path)

    for method, function, more in (
        ("GET", asked, []),
        ("POST", nothing, []),
        ("POST", asked, [Depends(nothing)]),
    ):
        router = APIRouter()
        router.add_api_route("/", function, methods=[method], dependencies=more)
        with pytest.raises(AssertionError):
            plain(router)
    assert [route.path for route in plain(clip.router)] == ["/clip/embed_image", "/clip/embed_text", "/clip/compare"]
