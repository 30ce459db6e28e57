"""`/v1/embeddings` and `/v1/models`: OpenAI's wire, and the forms of an image that others have added to it."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from clip_queue.api.requests import HEART
from tests.images import noise_image

from .service import BAD, FINGERPRINT, MODEL, Service, serve, until

URL = "/v1/embeddings"
IMAGE = base64.b64decode(HEART)
DATA_URI = f"data:image/png;base64,{HEART}"


def expected(*lengths: int) -> np.ndarray[Any, Any]:
    """What the test's worker answers for items of these lengths, scaled to length 1."""
    rows = np.array([[i, length] for i, length in enumerate(lengths)], np.float32)
    scaled: np.ndarray[Any, Any] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


async def embed(service: Service, **body: object) -> dict[str, Any]:
    response = await service.http.post(URL, json=body)
    assert response.status_code == 200, response.text
    out: dict[str, Any] = response.json()
    return out


def rows(answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return np.array([one["embedding"] for one in answer["data"]], np.float32)


def told(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The ``error`` of a response, whose message stands in ``detail`` too."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["detail"] == body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize("path", [URL, "/embeddings"])
async def test_texts_become_vectors_of_length_1_in_order(service: Service, path: str) -> None:
    body = {"input": ["a", "abc"], "model": MODEL, "user": "me", "of_nobody": [1]}
    response = await service.http.post(path, json=body)
    answer = response.json()
    assert answer.keys() == {"object", "id", "created", "model", "data", "usage"}
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    assert {one["object"] for one in answer["data"]} == {"embedding"}
    np.testing.assert_allclose(rows(answer), expected(1, 3), rtol=1e-6)
    assert response.headers["X-Clip-Queue-Fingerprint"] == FINGERPRINT
    assert 0 < float(response.headers["X-Processing-Time"]) < 10
    assert await service.kinds() == ["embed_text"]


async def test_one_text_needs_no_list_and_no_model(service: Service) -> None:
    np.testing.assert_allclose(rows(await embed(service, input="four")), expected(4))
    np.testing.assert_allclose(rows(await embed(service, input="four", model=None)), expected(4))


async def test_base64_is_the_same_numbers(service: Service) -> None:
    answer = await embed(service, input=["a", "abc"], encoding_format="base64")
    got = np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]])
    np.testing.assert_array_equal(got, rows(await embed(service, input=["a", "abc"], encoding_format="float")))
    assert isinstance((await embed(service, input="a", embedding_type="base64"))["data"][0]["embedding"], str)


async def test_raw_features_if_they_are_asked_for(service: Service) -> None:
    np.testing.assert_array_equal(rows(await embed(service, input=["a", "abc"], normalized=False)), [[0, 1], [1, 3]])


async def test_usage_counts_words_marks_and_images(service: Service) -> None:
    usage = (await embed(service, input=["It's 42 degrees.", DATA_URI]))["usage"]
    assert usage == {"prompt_tokens": 9, "total_tokens": 9, "num_images": 1}  # It ' s 4 2 degrees . and two


IMAGES: dict[str, object] = {
    "a data URI": DATA_URI,
    "a data URI of any type, in capitals": f"DATA:application/octet-stream;BASE64,{HEART}",
    "Jina's object with base64": {"image": HEART},
    "Jina's object with a data URI": {"image": DATA_URI},
    "LangChain's object": {"bytes": HEART},
    "an object whose URL is a data URI": {"url": DATA_URI},
    "an image part": {"type": "image_url", "image_url": {"url": DATA_URI}},
    "an image part, short": {"type": "image_url", "image_url": DATA_URI},
    "as on the clip routes": {"type": "base64", "value": HEART},
    "content of one part": {"content": [{"type": "image_url", "image_url": {"url": DATA_URI}}]},
    "an object that also says what it is not": {"text": None, "image": HEART},
}


async def test_usage_counts_no_tokens_that_are_cut(service: Service) -> None:
    context = service.client.registry.models[MODEL].context_length
    body = {"input": ["word " * 300, "a"], "truncate": True}
    usage = (await service.http.post(URL, json=body)).json()["usage"]
    assert usage["prompt_tokens"] == context + min(3, context)


async def test_a_route_is_counted_by_the_name_that_its_span_has(service: Service) -> None:
    await service.http.get(f"/v1/models/{MODEL}")
    assert 'route="/v1/models/{name}"' in (await service.http.get("/metrics")).text


@pytest.mark.parametrize("value", IMAGES.values(), ids=IMAGES.keys())
async def test_an_image_in_any_form_stands_among_texts(service: Service, value: object) -> None:
    answer = await embed(service, input=["a", value, "abc"])
    np.testing.assert_allclose(rows(answer), expected(1, len(IMAGE), 3), rtol=1e-6)
    assert answer["usage"]["num_images"] == 1
    assert await service.kinds() == ["embed_image"]


TEXTS: dict[str, object] = {
    "Jina's object": {"text": "abcd"},
    "a text part": {"type": "text", "text": "abcd"},
    "Cohere's content": {"content": [{"type": "text", "text": "abcd"}]},
    "a content that is a string": {"role": "user", "content": "abcd"},
}


@pytest.mark.parametrize("value", TEXTS.values(), ids=TEXTS.keys())
async def test_a_text_in_any_form(service: Service, value: object) -> None:
    for body in ({"input": value}, {"input": [value]}, {"inputs": [value]}):
        answer = await embed(service, **body)
        np.testing.assert_allclose(rows(answer), expected(4))
        assert answer["usage"]["num_images"] == 0


@pytest.mark.parametrize("content", ["abcd", [{"type": "text", "text": "abcd"}]])
async def test_a_chat_of_one_message_is_one_vector(service: Service, content: object) -> None:
    message = {"role": "user", "content": content}
    np.testing.assert_allclose(rows(await embed(service, messages=[message])), expected(4))


async def test_modality_says_what_each_string_is(service: Service) -> None:
    answer = await embed(service, input=[HEART, DATA_URI], modality="image")
    assert answer["usage"]["num_images"] == 2
    answer = await embed(service, input=[DATA_URI], modality="text")
    assert answer["usage"]["num_images"] == 0
    address = "https://example.org/a.png"
    np.testing.assert_allclose(rows(await embed(service, input=address)), expected(len(address)))


async def test_urls_are_fetched_and_one_that_is_refused_names_its_index(service: Service) -> None:
    for value, more in (
        ({"url": "https://127.0.0.1/a.png"}, {}),
        ({"image": "https://127.0.0.1/a.png"}, {}),
        ({"image_url": {"url": "https://127.0.0.1/a.png"}}, {}),
        ("https://127.0.0.1/a.png", {"modality": "image"}),
    ):
        response = await service.http.post(URL, json={"input": [{"text": "a"}, value], **more})
        error = told(response)
        assert error["param"] == "input[1]"
        assert response.json()["index"] == 1
        assert "URL without FQDN" in error["message"]


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "tokens": ({"input": [1, 2, 3]}, "arrays of tokens are not accepted"),
    "several arrays of tokens": ({"input": [[1, 2], [3]]}, "arrays of tokens are not accepted"),
    "nothing": ({}, "Give one of the fields"),
    "null": ({"input": None}, "Give one of the fields"),
    "both": ({"input": "a", "messages": [{"content": "b"}]}, "Give one of the fields"),
    "an empty list": ({"input": []}, "is empty"),
    "an empty list in a list": ({"input": [[]]}, "Field 'input' holds a list; it must be a text"),
    "a number": ({"input": 5}, "arrays of tokens"),
    "null among texts": ({"input": ["a", None]}, "input[1]: Field 'input[1]' holds null"),
    "true": ({"input": True}, "holds true or false"),
    "an empty object": ({"input": {}}, "must be a text, a data URI"),
    "text and image in one": ({"input": {"text": "a", "image": HEART}}, "exactly one part"),
    "two messages": ({"messages": [{"content": "a"}, {"content": "b"}]}, "exactly one part"),
    "no message": ({"messages": []}, "exactly one part"),
    "a message of two parts": (
        {"messages": [{"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": DATA_URI}]}]},
        "exactly one part",
    ),
    "parts that nest": ({"input": {"content": [{"content": [{"text": "a"}]}]}}, "must be a text"),
    "bytes that are none": ({"input": {"bytes": "§§"}}, "Malformed base64"),
    "a data URI without base64": ({"input": "data:image/svg+xml,<svg/>"}, "Malformed base64"),
    "a part of another type": ({"input": {"type": "audio", "audio": "x"}}, "must be a text"),
    "a text that is none": ({"input": {"text": 5}}, "must be a string; it holds a number"),
    "other dimensions": ({"input": "a", "dimensions": 1}, "makes vectors of 2, which cannot be shortened"),
    "dimensions in words": ({"input": "a", "dimensions": "2"}, "dimensions: Input should be a valid integer"),
    "another encoding": ({"input": "a", "encoding_format": "binary"}, "encoding_format: Input should be"),
    "another modality": ({"input": "a", "modality": "audio"}, "modality: Input should be"),
    "another truncation": (
        {"input": "a", "truncate": "START"},
        "truncate: Input should be true, false, 'NONE' or 'END'",
    ),
    "numbers as a message": ({"messages": [5]}, "Field 'messages[0]' holds a number; it must be a text"),
    "a message of nobody": ({"messages": [{"role": "user"}]}, "Field 'messages[0]' must be a text"),
    "half an emoji in a message": ({"messages": [{"content": "\ud83d"}]}, "Field 'messages[0].content' holds half"),
    "tokens under another name": ({"inputs": [1, 2]}, "Field 'inputs' holds numbers"),
    "a text that is no image": ({"input": {"type": "text", "value": 5}}, "must be a string; it holds a number"),
    "half an emoji": ({"input": "\ud83d"}, "lone surrogate"),
}


@pytest.mark.parametrize(("body", "says"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_cannot_be_used_is_refused_with_a_reason(service: Service, body: dict[str, Any], says: str) -> None:
    error = told(await service.http.post(URL, content=json.dumps(body)))
    assert says in error["message"], error
    assert error["type"] == "invalid_request_error"
    assert HEART not in error["message"]


async def test_the_models_own_dimensions_may_be_asked_for(service: Service) -> None:
    assert rows(await embed(service, input="a", dimensions=2)).shape == (1, 2)


async def test_an_input_that_the_worker_refuses_names_its_index(service: Service) -> None:
    response = await service.http.post(URL, json={"input": ["a", "b", BAD]})
    error = told(response)
    assert error == {
        "message": "input[2]: refused by the worker",
        "type": "invalid_request_error",
        "param": "input[2]",
        "code": "bad_input",
    }
    assert response.json()["index"] == 2


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({"input": "a", "model": "of-nobody"}, 404, ("model_not_found", "model", "invalid_request_error")),
        ({"input": "a", "model": "ViT-L-14"}, 503, ("unavailable", None, "server_error")),
        ({"input": "x" * 3000}, 400, ("text_too_long", None, "invalid_request_error")),
        ({"input": ["x", "x" * 3000]}, 400, ("text_too_long", "input[1]", "invalid_request_error")),
    ],
)
async def test_errors_have_openais_form(
    service: Service, body: dict[str, Any], status: int, expected: tuple[str, str | None, str]
) -> None:
    error = told(await service.http.post(URL, json=body), status)
    assert (error["code"], error["param"], error["type"]) == expected


async def test_errors_of_the_framework_have_it_too(service: Service) -> None:
    assert told(await service.http.post("/v1/chat/completions", json={}), 404)["code"] == "http"
    assert told(await service.http.get(URL), 405)["message"] == "Method Not Allowed"
    assert told(await service.http.post(URL, content=b"no json"))["code"] == "invalid"
    assert "message" in (await service.http.get("/v2")).json()
    assert "message" in (await service.http.get("/modelsx")).json()


async def test_a_full_queue_is_429_with_a_time_to_wait() -> None:
    async with serve(max_queued_items=1) as service:
        service.worker.running.clear()
        first = asyncio.create_task(service.http.post(URL, json={"input": "a"}))
        await until(lambda: service.broker.sent)
        response = await service.http.post(URL, json={"input": "b"})
        service.worker.running.set()
        assert (await first).status_code == 200
        assert told(response, 429)["type"] == "rate_limit_error"
        assert int(response.headers["Retry-After"]) >= 1


async def test_a_key_is_asked_for_on_each_route() -> None:
    async with serve(api_keys="one,two") as service:
        asks = [("POST", URL, {"input": "a"}), ("GET", "/v1/models", None), ("GET", f"/v1/models/{MODEL}", None)]
        for method, path, body in asks:
            for key, status in (("Bearer one", 200), ("Bearer three", 401), (None, 401)):
                headers = {"Authorization": key} if key else {}
                response = await service.http.request(method, path, json=body, headers=headers)
                assert response.status_code == status
                if status == 401:
                    assert told(response, 401)["code"] == "invalid_api_key"


async def test_models_are_listed_and_looked_up_by_name_or_alias() -> None:
    async with serve(model_aliases=f"text-embedding-3-small={MODEL},mine=a/b:c") as service:
        await service.worker.announce("a/b:c")
        for path in ("/v1/models", "/models"):
            answer = (await service.http.get(path)).json()
            assert answer["object"] == "list"
            assert [model["id"] for model in answer["data"]] == ["a/b:c"]
        one = (await service.http.get("/v1/models/a/b:c")).json()
        assert (one["object"], one["id"], one["dimensions"]) == ("model", "a/b:c", 2)
        assert (await service.http.get("/v1/models/a%2Fb%3Ac")).json() == one
        assert (await service.http.get("/models/mine")).json() == one
        assert told(await service.http.get("/v1/models/of-nobody"), 404)["code"] == "model_not_found"
        assert (await embed(service, input="a", model="mine"))["model"] == "a/b:c"


async def test_an_image_goes_to_the_worker_as_it_was_sent(service: Service) -> None:
    image = noise_image(3, size=(40, 30))
    answer = await embed(service, input=[{"bytes": base64.b64encode(image).decode()}], normalized=False)
    np.testing.assert_array_equal(rows(answer), [[0, len(image)]])
