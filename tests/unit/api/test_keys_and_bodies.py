"""API keys, the limits of bodies, and errors of the schema."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urljoin

import httpx
import orjson
import pytest

from clip_queue.api.application import KEY, take_key
from clip_queue.shared.owners import OPEN, owner_of

from .service import Service, serve

TEXT = {"text": "cat"}
PATH = "/clip/embed_text"


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        ({"params": {"api_key": "one"}}, {}),
        ({"headers": {"Authorization": "bearer two "}}, {}),
        ({}, {"api_key": "one"}),
        ({"params": {"api_key": "one"}}, {"api_key": "wrong"}),
    ],
    ids=["query", "header", "body", "query before body"],
)
async def test_a_key_may_come_in_the_query_the_header_or_the_body(
    request_: dict[str, Any], body: dict[str, str]
) -> None:
    async with serve(api_keys="one,two") as service:
        response = await service.http.post("/clip/embed_text", json={**TEXT, **body}, **request_)
        assert response.status_code == 200


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        ({}, {}),
        ({}, {"api_key": ["one"]}),
        ({"headers": {"Authorization": "Basic one"}}, {}),
        ({"params": {"api_key": "on"}}, {}),
        ({"params": {"api_key": "ö\ud800".encode("utf-8", "surrogatepass").decode("latin-1")}}, {}),
    ],
)
async def test_no_key_and_a_wrong_key_are_unauthorized(request_: dict[str, Any], body: dict[str, str]) -> None:
    async with serve(api_keys="one,two") as service:
        for path in ("/clip/embed_text", "/jobs"):
            response = await service.http.post(path, json={**TEXT, **body}, **request_)
            assert (response.status_code, response.json()) == (
                401,
                {"message": "Unauthorized api_key", "code": "unauthorized"},
            )
        assert (await service.http.get("/jobs", **request_)).status_code == 401
        assert (await service.http.post("/clip/embed_text", content=b"no JSON")).status_code == 401


async def test_each_key_sees_only_its_own_jobs() -> None:
    async with serve(api_keys="one,two") as service:
        job = await service.submit(api_key="one")
        path = f"/jobs/{job['id']}"
        assert (await service.http.get(path, params={"api_key": "one"})).status_code == 200
        for method, there in [("GET", path), ("GET", path + "/result"), ("GET", path + "/events"), ("DELETE", path)]:
            response = await service.http.request(method, there, params={"api_key": "two"})
            assert response.status_code == 404
        assert len((await service.http.get("/jobs", params={"api_key": "one"})).json()["jobs"]) == 1
        assert (await service.http.get("/jobs", params={"api_key": "two"})).json()["jobs"] == []


def test_owners_are_digests() -> None:
    assert owner_of(None) == OPEN
    assert owner_of("one") != owner_of("two")
    assert len(owner_of("one")) == 24


async def test_a_body_that_is_too_large_is_refused() -> None:
    async with serve(max_body_bytes=1024) as service:

        async def unannounced() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b" " * 500

        for content in (b" " * 1025, unannounced()):
            response = await service.http.post("/clip/embed_text", content=content)
            message = "The request body is larger than 1024 bytes (setting max_body_bytes)."
            assert (response.status_code, response.json()) == (413, {"message": message, "code": "too_large"})
        padded = orjson.dumps(TEXT).ljust(1024)
        assert (await service.http.post("/clip/embed_text", content=padded)).status_code == 200
        odd = await service.http.post("/clip/embed_text", content=padded, headers={b"Content-Length": b"\xb2"})
        assert odd.status_code == 200, "a length that is no number does not count"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "The body is not valid JSON."),
        (b"{", "The body is not valid JSON."),
        (b'{"text": "\xff"}', "The body is not valid JSON."),
        (b"[]", "The body must be a JSON object."),
        (b'"text"', "The body must be a JSON object."),
    ],
)
async def test_a_body_that_is_no_object_is_refused(service: Service, content: bytes, message: str) -> None:
    response = await service.http.post("/clip/embed_text", content=content)
    assert response.status_code == 422
    assert response.json() == {"detail": [{"loc": ["body"], "msg": message, "type": "json_invalid"}]}


async def test_the_content_type_does_not_matter(service: Service) -> None:
    response = await service.http.post(
        "/clip/embed_text", content=orjson.dumps(TEXT), headers={"Content-Type": "text/plain"}
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/clip/embed_text", {}, ["body", "text"]),
        ("/clip/embed_text", {"text": {"SECRET": 1}}, ["body", "text", "str"]),
        ("/clip/compare", {"subject": "a", "prompt": "b", "subject_type": "SECRET"}, ["body", "subject_type"]),
        ("/clip/embed_text", {"text": "a", "clip_version_id": "SECRET" * 99}, ["body", "clip_version_id"]),
        ("/jobs", {"task": "embed_text", "text": "a", "on_error": "SECRET"}, ["body", "embed_text", "on_error"]),
        ("/jobs", {"task": "SECRET"}, ["body"]),
    ],
)
async def test_an_error_of_the_schema_says_where_and_quotes_nothing(
    service: Service, path: str, body: object, where: list[str]
) -> None:
    response = await service.http.post(path, json=body)
    assert response.status_code == 422
    detail = response.json()["detail"]
    assert detail[0]["loc"] == where
    assert all(error.keys() == {"loc", "msg", "type"} for error in detail)
    assert "SECRET" not in response.text


async def test_errors_of_the_framework_have_a_message_too(service: Service) -> None:
    missing = await service.http.get("/nowhere")
    assert (missing.status_code, missing.json()) == (404, {"message": "Not Found", "code": "http"})
    wrong = await service.http.get("/clip/embed_text")
    assert (wrong.status_code, wrong.json()) == (405, {"message": "Method Not Allowed", "code": "http"})
    assert wrong.headers["Allow"] == "POST"


async def test_an_unexpected_error_tells_nothing_of_itself(service: Service) -> None:
    @service.app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret")

    response = await service.http.get("/broken")
    assert (response.status_code, response.json()) == (
        500,
        {"message": "Internal error; the server's log has the details.", "code": "internal"},
    )


async def test_a_caller_that_leaves_while_it_sends_is_no_error_of_the_server(service: Service) -> None:
    """An exception that the application raises is logged with its traceback."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/clip/embed_text", "headers": [], "query_string": b""}
    await service.app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert (
        sent[1]["body"] == b'{"message":"The connection was closed before the end of the body.","code":"disconnected"}'
    )


@pytest.mark.parametrize(
    ("sent", "left", "key"),
    [
        (b"api_key=SECRET&limit=1&service_secret=SECRET", b"limit=1", "SECRET"),
        (b"limit=1&api%5Fkey=a%26b+c&x=%zz&y", b"limit=1&x=%zz&y", "a&b c"),
        (b"API_KEY=SECRET&a=%C3%A9", b"a=%C3%A9", None),
        (b"api_key=first&api_key=", b"", ""),
        (b"api_key=schl%C3%BCssel", b"", "schl\u00fcssel"),
        (b"&&a=b&", b"&&a=b&", None),
    ],
)
def test_a_key_in_the_query_leaves_the_address(sent: bytes, left: bytes, key: str | None) -> None:
    scope = {"type": "http", "query_string": sent}
    take_key(scope)
    assert (scope["query_string"], scope.get(KEY)) == (left, key)


async def test_a_slash_at_the_end_of_a_path_changes_nothing() -> None:
    async with serve(api_keys="one") as service:
        for path in ("/clip/embed_text/", "/clip/embed_text//"):
            answer = await service.http.post(f"{path}?api_key=one", json=TEXT)
            assert answer.status_code == 200
        assert (await service.http.get("/healthz/")).status_code == 200
        assert (await service.http.get("//")).status_code < 400
        assert (await service.http.get("/nowhere/")).status_code == 404


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_the_pages_of_the_document_load_nothing_from_elsewhere(service: Service, page: str) -> None:
    html = (await service.http.get(page)).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(loaded) >= 2
    for path in loaded:
        answer = await service.http.get(urljoin(page, path))
        assert answer.status_code == 200, path
    assert not re.search(r"https?://", html)


async def test_the_openapi_document_has_every_schema_that_it_refers_to(service: Service) -> None:
    response = await service.http.get("/openapi.json")
    document = response.json()
    schemas = document["components"]["schemas"]
    references = {part.split('"')[0] for part in response.text.split("#/components/schemas/")[1:]}
    assert references
    assert references <= schemas.keys()
    examples = document["paths"]["/clip/compare"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        assert (await service.http.post("/clip/compare", json=example["value"])).status_code == 200
    assert service.app.openapi() == document


async def test_other_routes_of_roboflow_inference(service: Service) -> None:
    http: httpx.AsyncClient = service.http
    assert (await http.get("/")).json()["name"] == "clip-queue"
    assert (await http.get("/info")).json().keys() == {"name", "version", "uuid"}
    (model,) = (await http.get("/model/registry")).json()["models"]
    assert (model["model_id"], model["task_type"], model["image_size"]) == ("clip/emoji-mini", "embedding", [32, 32])
    for path in ("/model/add", "/model/remove", "/model/clear"):
        assert (await http.post(path, json={})).json() == {"models": [model]}


async def test_a_key_of_any_script_is_accepted_in_each_place() -> None:
    key = "schlüssel-ключ"
    async with serve(api_keys=f"{key},latin-é") as service:
        body = {"text": "a"}
        for header, status in [
            (key.encode(), 200),
            ("latin-é".encode(), 200),
            ("latin-é".encode("latin-1"), 200),
            (key.encode()[:-1], 401),
            (b"\xff\xfe\xfd", 401),
            (b"latin-e", 401),
        ]:
            response = await service.http.post(PATH, json=body, headers={b"Authorization": b"Bearer " + header})
            assert response.status_code == status, header
        assert (await service.http.post(PATH, json=body, params={"api_key": key})).status_code == 200
        assert (await service.http.post(PATH, json={**body, "api_key": key})).status_code == 200


async def test_the_bytes_of_bodies_under_way_are_bounded_and_given_back() -> None:
    async with serve(max_total_body_bytes=10_000) as service:
        came, go = asyncio.Event(), asyncio.Event()

        async def half() -> AsyncIterator[bytes]:
            yield b'{"text":"a"' + b" " * 6000
            came.set()
            await go.wait()
            yield b"}"

        slow = asyncio.create_task(service.http.post(PATH, content=half()))
        await came.wait()
        second = b'{"text":"b"' + b" " * 6000 + b"}"
        response = await service.http.post(PATH, content=second)
        assert response.status_code == 503
        assert "setting max_total_body_bytes" in response.json()["message"]
        assert response.headers["Retry-After"] == "2"
        assert (await service.http.post(PATH, json={"text": "small"})).status_code == 200
        go.set()
        assert (await slow).status_code == 200
        assert (await service.http.post(PATH, content=second)).status_code == 200
