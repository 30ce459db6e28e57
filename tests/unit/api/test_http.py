"""HTTP as clients speak it: what they send beside a plain JSON body, and what they may ask about a route."""

from __future__ import annotations

import gzip
import logging
import re
import time
from typing import Any
from urllib.parse import urljoin

import httpx
import orjson
import pytest

from clip_queue.api import json_body
from clip_queue.api.gzip_body import gunzip
from clip_queue.api.requests import HEART
from clip_queue.shared.errors import BadInput

from .service import Service, serve

TEXT = {"text": "cat"}
PATH = "/clip/embed_text"


async def post(service: Service, content: bytes, **headers: str) -> httpx.Response:
    return await service.http.post(PATH, content=content, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"text":"cat"}',
        b'{"text":"cat","meta":NaN,"more":[Infinity,-Infinity]}',
        b'{"text":"cat","meta":1e999}',
        b'{"text":"cat","meta":' + b"9" * 5000 + b',"more":-' + b"9" * 5000 + b"}",
        b'{"text":"cat","meta":"\\ud83d"}',
        '{"text":"cat"}'.encode("utf-16"),
    ],
    ids=["byte-order mark", "NaN", "huge float", "huge integers", "half an emoji in an ignored key", "UTF-16"],
)
async def test_json_as_json_loads_takes_it(service: Service, content: bytes) -> None:
    response = await post(service, content)
    assert response.status_code == 200, response.text
    assert response.json()["embeddings"] == [[0, 3]]


async def test_half_an_emoji_is_the_error_of_its_item(service: Service) -> None:
    content = b'{"text":["a","cut \\ud83d","c"]%s}'
    message = "Field 'text' holds half of a character (a lone surrogate), as a cut emoji does."
    response = await post(service, content % b"")
    assert (response.status_code, response.json()) == (400, {"message": message, "code": "bad_input", "index": 1})
    skipped = (await post(service, content % b',"on_error":"skip"')).json()
    assert skipped["embeddings"] == [[0, 1], None, [1, 1]]
    job = await service.http.post("/jobs", content=b'{"task":"embed_text","text":["a","\\ud83d"],"on_error":"skip"}')
    assert job.status_code == 202
    name = b'{"subject":"a","subject_type":"text","prompt":{"\\ud83d":"b"}}'
    response = await service.http.post("/clip/compare", content=name)
    assert response.status_code == 400
    assert r"prompt '\ud83d'" in response.json()["message"]


async def test_a_gzipped_body_is_read_within_the_limit() -> None:
    async with serve(max_body_bytes=4096) as service:
        body = gzip.compress(orjson.dumps(TEXT))
        for encoding in ("gzip", "GZIP", "x-gzip"):
            assert (await post(service, body, Content_Encoding=encoding)).status_code == 200
        bomb = await post(service, gzip.compress(b" " * 5000), Content_Encoding="gzip")
        assert bomb.status_code == 413
        text = orjson.dumps(TEXT)
        parts = [gzip.compress(text[n : n + 3]) for n in range(0, len(text), 3)]
        for several in (b"".join(parts), b"".join(parts) + bytes(70_000), body + gzip.compress(b" ")):
            assert (await post(service, several[:4000], Content_Encoding="gzip")).status_code == 200
        bombs = gzip.compress(b" " * 2000) * 3
        assert (await post(service, bombs, Content_Encoding="gzip")).status_code == 413
        for wrong in (text, body[:-3], body + b"more", body + body[:-1], body + bytes(9) + b"x", b"", body[:5]):
            response = await post(service, wrong, Content_Encoding="gzip")
            assert response.status_code == 400
            assert "gzip stream" in response.json()["message"]
        response = await post(service, body, Content_Encoding="br")
        assert response.status_code == 415
        assert response.headers["Accept-Encoding"] == "gzip, identity"
        assert (await post(service, orjson.dumps(TEXT), Content_Encoding="identity")).status_code == 200


def test_many_gzip_streams_are_read_fast_or_refused_soon() -> None:
    blocks = gzip.compress(b" " * 1000) * 4000
    began = time.process_time()
    assert len(gunzip(blocks, 1 << 26)) == 4_000_000
    with pytest.raises(BadInput, match="gzip stream"):
        gunzip(gzip.compress(b"") * 500_000, 1 << 26)
    assert time.process_time() - began < 5


async def test_a_data_uri_of_any_type_carries_an_image(service: Service) -> None:
    for kind in ("application/octet-stream", "image/png", ""):
        body = {"image": {"type": "base64", "value": f"data:{kind};base64,{HEART}"}}
        assert (await service.http.post("/clip/embed_image", json=body)).status_code == 200


async def test_head_is_answered_where_get_is(service: Service) -> None:
    job = await service.submit()
    await service.look(job["id"], wait=5)
    paths = ["/", "/info", "/healthz", "/readiness", "/model/registry", "/jobs", f"/jobs/{job['id']}", "/docs"]
    for path in [*paths, f"/jobs/{job['id']}/result"]:
        got, head = await service.http.get(path), await service.http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
    service.worker.running.clear()
    waiting = await service.submit()
    assert (await service.http.head(f"/jobs/{waiting['id']}/events")).status_code == 200
    assert (await service.http.head(PATH)).status_code == 405


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/jobs", "GET, HEAD, POST"),
        ("POST", "/jobs/x", "DELETE, GET, HEAD"),
        ("GET", PATH, "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/clip/compare", "POST"),
        ("POST", "/docs/assets/favicon.png", "GET, HEAD"),
    ],
)
async def test_allow_lists_all_methods_of_a_path(service: Service, method: str, path: str, allow: str) -> None:
    response = await service.http.request(method, path)
    assert (response.status_code, response.headers["Allow"]) == (405, allow)
    assert response.json() == {"message": "Method Not Allowed", "code": "http"}


async def test_under_a_prefix_all_is_as_without() -> None:
    """A server that is told its prefix (``--root-path``) puts it before each path."""
    async with serve(api_keys="k") as service:
        under = httpx.ASGITransport(service.app, root_path="/door")
        async with httpx.AsyncClient(transport=under, base_url="http://test/door") as http:
            for path, form in (("/v1/embeddings", "error"), ("/vectorize", "error"), ("/jobs", "message")):
                refused = await http.post(path, json={})
                assert refused.status_code == 401
                assert form in refused.json()
            for path in ("", "/", "//"):
                root = await http.get(path)
                assert (root.status_code, root.json().get("name")) == (200, "clip-queue")
            assert (await http.get("/healthz/")).status_code == 200
            key = {"Authorization": "Bearer k"}
            made = await http.post("/jobs", json={"task": "embed_text", "text": "a"}, headers=key)
            assert made.headers["Location"] == f"/door/jobs/{made.json()['id']}"
            assert (await http.get(f"http://test{made.headers['Location']}", headers=key)).status_code == 200


async def test_a_refused_key_says_how_one_is_sent() -> None:
    async with serve(api_keys="k") as service:
        for path in (PATH, "/v1/embeddings", "/jobs"):
            assert (await service.http.post(path, json={})).headers["WWW-Authenticate"] == "Bearer"
        assert "WWW-Authenticate" not in (await service.http.get("/nowhere")).headers


@pytest.mark.parametrize("page", ["/docs", "/docs/", "/redoc"])
async def test_the_documentation_finds_its_files_behind_a_proxy_that_takes_a_prefix_away(
    service: Service, page: str
) -> None:
    html = (await service.http.get(page)).text
    found = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", html)
    links = [link for pair in found for link in pair if link and not link.startswith("data:")]
    assert links
    for link in links:
        seen = urljoin(f"https://host/clip{page}", link)
        assert seen.startswith("https://host/clip/"), link
        assert (await service.http.get(seen.removeprefix("https://host/clip"))).status_code == 200, link


async def test_pages_of_the_listed_origins_may_call(service: Service) -> None:
    page = {"Origin": "https://app.example.org"}
    preflight = {
        **page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    assert (await service.http.options(PATH, headers=preflight)).status_code == 405, "off by default"
    assert "Access-Control-Allow-Origin" not in (await service.http.post(PATH, json=TEXT, headers=page)).headers
    async with serve(cors_origins="https://app.example.org, https://b.example.org", api_keys="one") as listed:
        response = await listed.http.options(PATH, headers=preflight)
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == page["Origin"]
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        assert "authorization" in response.headers["Access-Control-Allow-Headers"].lower()
        for key, status in (("one", 200), ("wrong", 401)):
            response = await listed.http.post(PATH, json=TEXT, headers={**page, "Authorization": f"Bearer {key}"})
            assert response.status_code == status
            assert response.headers["Access-Control-Allow-Origin"] == page["Origin"], "errors can be read too"
            assert "X-Clip-Queue-Model" in response.headers["Access-Control-Expose-Headers"]
        other = await listed.http.options(PATH, headers={**preflight, "Origin": "https://evil.example.org"})
        assert "Access-Control-Allow-Origin" not in other.headers


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "clip_queue.api.request_log"]


async def test_a_request_that_fails_leaves_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serve(api_keys="SECRET-key", max_texts=2) as service:
        key = {"Authorization": "Bearer SECRET-key", "X-Request-Id": "caller-7"}
        for request, line in [
            ((PATH, {"text": ["SECRET"] * 3}), "POST /clip/embed_text 400 bad_input items=3 id=caller-7"),
            ((PATH, {"text": {"SECRET": 1}}), "POST /clip/embed_text 422 invalid items=0 id=caller-7"),
            (("/nowhere/SECRET", {}), "POST - 404 http items=0 id=caller-7"),
        ]:
            caplog.clear()
            response = await service.http.post(request[0], json=request[1], headers=key)
            assert response.headers["X-Request-Id"] == "caller-7"
            assert failures(caplog) == [line]
            assert "SECRET" not in caplog.text.replace("HTTP Request", "").split("httpx")[0]
        caplog.clear()
        response = await service.http.get("/jobs/0?api_key=wrong")
        assert failures(caplog)[0].startswith("GET /jobs/{job_id} 401 unauthorized items=0 id=")
        caplog.clear()
        good = await service.http.post(PATH, json=TEXT, headers={**key, "X-Request-Id": "not\tsane {}"})
        assert good.status_code == 200
        assert re.fullmatch("[0-9a-f]{16}", good.headers["X-Request-Id"])
        assert failures(caplog) == []


async def test_an_unexpected_error_leaves_a_line_too(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    @service.app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret")

    await service.http.get("/broken")
    (line,) = failures(caplog)
    assert line.startswith("GET /broken 500 internal items=0 id=")


async def test_a_client_that_hangs_up_is_one_line(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"text":', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(_: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": [], "query_string": b""}
    await service.app(scope, receive, send)
    assert len(caplog.records) == 1
    assert failures(caplog)[0].startswith("POST /clip/embed_text 400 disconnected items=0 id=")


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return b'{"a":' + opening * depth + b"1" + closing * depth + b"}"


@pytest.mark.parametrize("depth", [201, 254, 300, 1023, 50_000])
@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")], ids=["lists", "objects"])
async def test_what_is_nested_too_deeply_is_refused(
    service: Service, depth: int, brackets: tuple[bytes, bytes]
) -> None:
    for path in (PATH, "/jobs"):
        response = await service.http.post(path, content=nested(depth, *brackets))
        assert response.status_code == 400
        assert response.json() == {"message": "The body is nested too deeply.", "code": "bad_input"}


def test_values_are_counted_outside_strings() -> None:
    json_body.loads(b'{"a":"' + b",[{" * 200_000 + b'"}')
    json_body.loads(b'{"a":"' + b',\\"[\\\\' * 200_000 + b'"}')
    for many in (b"[" + b"[]," * 200_001 + b"1]", b'["\\\\",' + b"0," * 200_001 + b"1]"):
        with pytest.raises(json_body.NotJson, match="more than 200000 values"):
            json_body.loads(many)
