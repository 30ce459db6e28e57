"""API keys: from query, header or body, in this order; and nowhere to be read afterwards."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.harness import Api, Stack
from tests.wire import ok, refused

KEY, OTHER, WRONG = "key-one-7f3a", "key-two-91cc", "wrong-key-55d0"


@pytest.fixture(scope="module")
def locked(served: tuple[Stack, Api]) -> Iterator[Api]:
    """A second API in front of the session's worker that asks for a key."""
    stack, _ = served
    api = stack.api(api_keys=f"{KEY}, {OTHER}")
    stack.ready(api)
    yield api
    api.stop()


def ask(
    api: Api, *, query: str | None = None, header: str | None = None, body: object = ..., text: Any = "a cat"
) -> httpx.Response:
    sent = {"text": text} if body is ... else {"text": text, "api_key": body}
    with api.client() as http:
        return http.post(
            "/clip/embed_text",
            params={"api_key": query} if query is not None else {},
            headers={"Authorization": header} if header is not None else {},
            json=sent,
        )


ACCEPTED: dict[str, dict[str, Any]] = {
    "query": {"query": KEY},
    "another key": {"query": OTHER},
    "header": {"header": f"Bearer {KEY}"},
    "header in lower case": {"header": f"bearer {KEY}"},
    "body": {"body": KEY},
    "query before a wrong header": {"query": KEY, "header": f"Bearer {WRONG}"},
    "query before a wrong body": {"query": KEY, "body": WRONG},
    "header before a wrong body": {"header": f"Bearer {KEY}", "body": WRONG},
    "query beside a null body key": {"query": KEY, "body": None},
    "header beside a null body key": {"header": f"Bearer {KEY}", "body": None},
    "body behind an empty query": {"query": "", "body": KEY},
    "body behind another scheme": {"header": "Basic dXNlcjpwYXNz", "body": KEY},
    "password": {"header": "Basic " + base64.b64encode(f"any:{KEY}".encode()).decode()},
}
REFUSED: dict[str, dict[str, Any]] = {
    "none": {},
    "null": {"body": None},
    "empty": {"query": "", "header": "Bearer", "body": ""},
    "wrong query": {"query": WRONG},
    "wrong header": {"header": f"Bearer {WRONG}"},
    "wrong body": {"body": WRONG},
    "wrong query before a right header": {"query": WRONG, "header": f"Bearer {KEY}"},
    "wrong query before a right body": {"query": WRONG, "body": KEY},
    "wrong header before a right body": {"header": f"Bearer {WRONG}", "body": KEY},
    "part of a key": {"query": KEY[:-1]},
    "both keys at once": {"query": f"{KEY}, {OTHER}"},
    "a number": {"body": 7},
    "a list": {"body": [KEY]},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_key_is_accepted_from(locked: Api, case: str) -> None:
    assert len(ok(ask(locked, **ACCEPTED[case]))["embeddings"]) == 1


@pytest.mark.parametrize("case", REFUSED)
def test_a_key_is_refused_as_unauthorized(locked: Api, case: str) -> None:
    assert refused(ask(locked, **REFUSED[case]), 401) == {"message": "Unauthorized api_key"}


def test_without_a_key_nothing_is_told_of_what_else_is_wrong(locked: Api) -> None:
    with locked.client() as http:
        for route in ("embed_image", "embed_text", "compare"):
            for content in (b"no json", b"[]", b"{}", b'{"clip_version_id": "of nobody"}'):
                assert refused(http.post(f"/clip/{route}", content=content), 401) == {"message": "Unauthorized api_key"}


def test_health_needs_no_key(locked: Api) -> None:
    with locked.client() as http:
        assert ok(http.get("/healthz")) == {"status": "healthy"}
        assert ok(http.get("/readiness")) == {"status": "ready"}


def test_no_key_is_echoed_or_logged_by_api_or_worker(served: tuple[Stack, Api], locked: Api) -> None:
    answers = [
        ask(locked, query=KEY),
        ask(locked, header=f"Bearer {KEY}"),
        ask(locked, body=KEY),
        ask(locked, query=WRONG, header=f"Bearer {OTHER}", body=OTHER),
        ask(locked, body=KEY, text={"not": "a text"}),  # 422
        ask(locked, body=KEY, text=[KEY, 1]),  # 422
        ask(locked, body=KEY, text=[]),  # 400
    ]
    assert [a.status_code for a in answers] == [200, 200, 200, 401, 422, 422, 400]
    assert not any(key in a.text for a in answers for key in (KEY, OTHER, WRONG))
    logged = locked.log.read_text()
    assert "POST /clip/embed_text HTTP" in logged, "the access log is there, its keys are not"
    logs = logged + "".join(s.log.read_text() for s in served[0].services)
    assert not any(key in logs for key in (KEY, OTHER, WRONG))


def test_a_secret_beside_a_key_in_the_query_is_not_logged_either(locked: Api) -> None:
    with locked.client() as http:
        query = f"countinference=false&service_secret=s3cr3t-a&api_key={KEY}"
        ok(http.post(f"/clip/embed_text?{query}", json={"text": "a"}))
    logged = locked.log.read_text()
    assert "/clip/embed_text?countinference=false HTTP" in logged
    assert "s3cr3t-a" not in logged
