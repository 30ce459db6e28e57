"""Any number of items in, an array out: how they are cut, what is told of bad ones, in both faces."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from clip_queue import BadRequest, ClientClosed, ClientLimits, ClipQueueError, ItemError
from clip_queue.client import batches
from clip_queue.client.steps import Done, advance
from tests.client_faces import Face

from .conftest import FakeServer, Made, error


def lengths(texts: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def test_texts_are_cut_and_come_back_in_order(face: Face, server: FakeServer) -> None:
    server.delay = 0.002
    texts = ["x" * (1 + i % 97) for i in range(1000)]
    found = face.do(face.client.embed_texts, texts)
    assert found.vectors.dtype == np.float32
    assert found.vectors.shape == (1000, 2)
    assert found.vectors[:, 0].tolist() == lengths(texts)
    assert sorted(len(body["text"]) for body in server.bodies()) == [232, 256, 256, 256]
    assert (found.model, found.fingerprints, found.errors) == ("m", ("f",), [])
    assert np.array_equal(np.asarray(found), found.vectors)
    assert len(found) == 1000


def test_long_texts_are_cut_where_the_caller_says_so(face: Face, server: FakeServer) -> None:
    face.do(face.client.embed_texts, ["a"] * 300, long_texts="cut")
    assert [body["long_texts"] for body in server.bodies()] == ["cut", "cut"]
    face.do(face.client.embed_texts, "a")
    assert "long_texts" not in server.bodies()[-1]
    with pytest.raises(ValueError, match="Long texts 'fail' or are 'cut', not 'shorten'"):
        face.do(face.client.embed_texts, "a", long_texts="shorten")


@pytest.mark.parametrize("concurrency", [1, 3])
def test_only_so_many_requests_are_in_flight(make: Made, server: FakeServer, concurrency: int) -> None:
    face = make(concurrency=concurrency)
    server.delay = 0.01
    face.do(face.client.embed_images, [b"image"] * 100)
    assert len(server.requests) == 13
    assert 1 <= server.most_at_once <= concurrency


def test_a_generator_is_read_as_it_is_needed(make: Made, server: FakeServer) -> None:
    face = make(concurrency=2)
    ahead: list[int] = []

    def images() -> Iterator[bytes]:
        for i in range(80):
            ahead.append(i + 1 - 8 * len(server.requests))
            yield b"image"

    server.delay = 0.005
    assert len(face.do(face.client.embed_images, images())) == 80
    assert max(ahead) <= 3 * 8, "two requests in flight, and one that is prepared"


def test_one_item_is_one_row_and_nothing_is_no_request(face: Face, server: FakeServer) -> None:
    assert face.do(face.client.embed_texts, "red heart").vectors.tolist() == [[9.0, 1.0]]
    assert face.do(face.client.embed_images, b"12345").vectors.tolist() == [[5.0, 2.0]]
    asked = len(server.requests)
    assert face.do(face.client.embed_texts, []).vectors.shape == (0, 0)
    assert len(server.requests) == asked


def test_images_are_cut_by_bytes_too(make: Made, server: FakeServer) -> None:
    face = make(limits=ClientLimits(body_bytes=10_000))
    images = [bytes(n) for n in (3000, 3000, 3000, 7000, 10, 10)]
    assert face.do(face.client.embed_images, images).vectors[:, 0].tolist() == [3000, 3000, 3000, 7000, 10, 10]
    assert max(len(request.content) for request in server.requests) <= 10_000
    assert sorted(len(body["image"]) for body in server.bodies()) == [1, 2, 3]


def test_a_lower_limit_of_the_server_is_learned(make: Made, server: FakeServer) -> None:
    face = make(concurrency=1)
    server.most["text"] = 100
    texts = ["x" * i for i in range(1, 601)]
    assert face.do(face.client.embed_texts, texts).vectors[:, 0].tolist() == lengths(texts)
    sizes = [len(body["text"]) for body in server.bodies()]
    assert sizes == [256, 100, 100, 56, 100, 100, 100, 44], "refused once, and never again"


@pytest.mark.parametrize("proxy", [False, True])
def test_a_body_that_is_too_large_is_cut_smaller(make: Made, server: FakeServer, proxy: bool) -> None:
    face = make(concurrency=1)
    server.max_body, server.proxy = 5000, proxy
    images = [bytes(1000 + i) for i in range(16)]
    assert face.do(face.client.embed_images, images).vectors[:, 0].tolist() == [1000 + i for i in range(16)]
    asked = len(server.requests)
    face.do(face.client.embed_images, images)
    assert max(len(request.content) for request in server.requests[asked:]) <= 5000, "from then on"
    with pytest.raises(BadRequest) as caught:
        face.do(face.client.embed_images, [b"1", bytes(6000)])
    assert (caught.value.status, caught.value.index) == (413, 1)
    skipped = face.do(face.client.embed_images, [b"1", bytes(6000)], on_error="skip")
    assert [(one.index, one.code) for one in skipped.errors] == [(1, "too_large")]


@pytest.mark.parametrize("place", [0, 7, 8, 299])
def test_a_bad_item_fails_the_call_with_its_index(face: Face, place: int) -> None:
    images = [b"good"] * 300
    images[place] = b"bad"
    with pytest.raises(BadRequest) as caught:
        face.do(face.client.embed_images, images)
    assert caught.value.index == place
    assert (caught.value.status, caught.value.request_id) == (400, "r-1")
    assert f"item {place}" in str(caught.value)


def test_bad_items_are_skipped_with_their_reasons(face: Face, server: FakeServer) -> None:
    images = [b"good"] * 30
    for place in (3, 4, *range(16, 24), 29):
        images[place] = b"bad"
    found = face.do(face.client.embed_images, images, on_error="skip")
    assert [one.index for one in found.errors] == [3, 4, *range(16, 24), 29]
    assert {one.code for one in found.errors} == {"bad_item"}, "also where all of a request are bad"
    assert np.isnan(found.vectors[:, 0]).nonzero()[0].tolist() == [one.index for one in found.errors]
    assert found.good.tolist() == [i for i in range(30) if images[i] == b"good"]
    assert max(len(body["image"]) for body in server.bodies()) == 8


@pytest.mark.parametrize("most", [1, 2, 8])
def test_nothing_but_bad_items_is_no_error_where_they_are_skipped(face: Face, server: FakeServer, most: int) -> None:
    server.most["text"] = most
    found = face.do(face.client.embed_texts, ["bad"] * 10, on_error="skip")
    assert [one.index for one in found.errors] == list(range(10))
    assert np.isnan(found.vectors).all()
    assert len(found) == 10


def test_what_cannot_be_sent_is_an_item_s_error_too(face: Face, server: FakeServer) -> None:
    texts = ["a", None, "ccc", 7]
    with pytest.raises(BadRequest, match="NoneType is no text") as caught:
        face.do(face.client.embed_texts, texts)
    assert caught.value.index == 1
    assert caught.value.status is None
    found = face.do(face.client.embed_texts, texts, on_error="skip")
    assert [one.index for one in found.errors] == [1, 3]
    assert found.vectors[[0, 2], 0].tolist() == [1, 3]
    found = face.do(face.client.embed_images, ["/no/such/file.png"], on_error="skip")
    assert "No such file" in found.errors[0].message
    assert server.bodies()[-1].keys() == {"text", "on_error"}, "nothing was left to send"


def test_an_open_file_is_one_image(face: Face, server: FakeServer) -> None:
    assert face.do(face.client.embed_images, io.BytesIO(b"a\nb\nc")).vectors.tolist() == [[5, 2]]
    assert face.do(face.client.embed_images, [io.BytesIO(b"a\nb"), b"a"]).vectors[:, 0].tolist() == [3, 1]
    assert len(server.requests) == 2


@pytest.mark.parametrize("image", [np.array(5, np.uint8), io.StringIO("a")])
def test_one_that_is_no_image_is_skipped_too(face: Face, image: Any) -> None:
    found = face.do(face.client.embed_images, image, on_error="skip")
    assert [(one.index, one.code) for one in found.errors] == [(0, "bad_image")]


def test_half_a_character_reaches_the_server(face: Face, server: FakeServer) -> None:
    with pytest.raises(UnicodeEncodeError):  # of the fake server, which has received it
        face.do(face.client.embed_texts, ["a \ud83d"])
    assert server.bodies()[0]["text"] == ["a \ud83d"]


def test_the_model_goes_with_every_request_and_may_not_change(make: Made, server: FakeServer) -> None:
    face = make(concurrency=1)
    found = face.do(face.client.embed_images, [b"x"] * 20, model="ViT-B-16")
    assert found.model == "ViT-B-16"
    assert {body["clip_version_id"] for body in server.bodies()} == {"ViT-B-16"}
    other = httpx.Response(200, json={"embeddings": [[1.0, 2.0]] * 8}, headers={"X-Clip-Queue-Model": "another"})
    server.answers.append(other)
    with pytest.raises(ClipQueueError, match="another and m"):
        face.do(face.client.embed_images, [b"x"] * 20)


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "<html>"},
        {"json": []},
        {"json": {"embeddings": [[1.0]]}},
        {"json": {"embeddings": [[1.0], [1.0, 2.0]]}},
        {"json": {"embeddings": [["a"], ["b"]]}},
        {"json": {"embeddings": None}},
        {"json": {"embeddings": [5, 6]}},
        {"json": {"embeddings": [None, 5]}},
        {"status_code": 422, "json": {"detail": [5, {"loc": None, "msg": 5}]}},
        {"status_code": 301, "headers": {"Location": "https://elsewhere"}},
        {"status_code": 500, "text": "oops"},
    ],
)
def test_another_server_s_answer_is_an_error(face: Face, server: FakeServer, answer: dict[str, Any]) -> None:
    server.answers.append(httpx.Response(**{"status_code": 200, **answer}))
    with pytest.raises(ClipQueueError):
        face.do(face.client.embed_texts, ["a", "b"])
    assert len(server.requests) == 1


@pytest.mark.parametrize("errors", [5, [5], *([{"index": index}] for index in (None, -1, True, 1.0, 2, "0"))])
def test_errors_of_items_that_were_not_sent_are_another_server_s(face: Face, server: FakeServer, errors: Any) -> None:
    server.answers.append(httpx.Response(200, json={"embeddings": [[1.0], None], "errors": errors}))
    with pytest.raises(ClipQueueError, match="not the answer of a clip-queue server"):
        face.do(face.client.embed_texts, ["a", "b"], on_error="skip")


def test_an_error_without_words_has_none(face: Face, server: FakeServer) -> None:
    answer = {"embeddings": [None], "errors": [{"index": 0, "code": None, "message": None}]}
    server.answers.append(httpx.Response(200, json=answer))
    assert face.do(face.client.embed_texts, ["a"], on_error="skip").errors == [ItemError(0, "", "")]


def test_comparisons_are_cut_too_and_names_are_kept(face: Face, server: FakeServer) -> None:
    prompts = ["x" * i for i in range(1, 21)]
    found = face.do(face.client.compare, b"subject", prompts)
    assert found.dtype == np.float32
    assert found.tolist() == lengths(prompts)
    assert len(server.requests) == 3
    assert {body["subject"]["value"] for body in server.bodies()} == {"c3ViamVjdA=="}
    named = face.do(face.client.compare, "cat", {"a": b"12", "type": b"123"}, subject_type="text", prompt_type="image")
    assert named == {"a": 2.0, "type": 3.0}
    assert server.bodies()[-1]["subject"] == "cat"
    assert face.do(face.client.compare, "a", "bb", subject_type="text").tolist() == [2.0]
    with pytest.raises(BadRequest) as caught:
        face.do(face.client.compare, b"s", [*prompts, "bad"])
    assert caught.value.index == 20


def test_a_bad_subject_blames_no_prompt(face: Face, server: FakeServer) -> None:
    server.answers.append(error(400, "Could not load input image."))
    with pytest.raises(BadRequest) as caught:
        face.do(face.client.compare, b"subject", ["one"])
    assert caught.value.index is None
    with pytest.raises(ValueError, match="'image' or 'text'"):
        face.do(face.client.compare, b"s", ["one"], prompt_type="sound")


def test_an_unknown_on_error_is_refused(face: Face) -> None:
    with pytest.raises(ValueError, match="'fail' or 'skip'"):
        face.do(face.client.embed_texts, ["a"], on_error="ignore")


def test_the_client_of_a_user_is_not_closed(face: Face) -> None:
    if hasattr(face.client, "aclose"):
        face.do(face.client.aclose)
    else:
        face.client.close()
    with pytest.raises(ClientClosed):
        face.do(face.client.embed_texts, ["a"])
    assert not face.http.is_closed


def test_a_client_may_be_shared_by_threads(server: FakeServer) -> None:
    from clip_queue import Client

    found: dict[int, list[float]] = {}
    with (
        httpx.Client(transport=httpx.MockTransport(server)) as http,
        Client("http://clip.test", http=http) as client,
    ):

        def ask(i: int) -> None:
            found[i] = client.embed_texts(["x" * (i + 1)] * 300).vectors[:, 0].tolist()

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == {i: [i + 1.0] * 300 for i in range(8)}


def test_no_thread_is_left(face: Face) -> None:
    before = set(threading.enumerate())
    face.do(face.client.embed_images, [b"x"] * 50)
    assert not [t for t in set(threading.enumerate()) - before if "clip-queue" in t.name]


def test_the_core_needs_no_connection() -> None:
    call = batches.embedding("text", None, "fail", ClientLimits())
    (group,) = call.groups(["a", "b"])
    (part,) = call.parts(group)
    request = advance(call.ask(part), None)
    assert not isinstance(request, Done)
    assert request == batches.Request("POST", "/clip/embed_text", b'{"text":["a","b"]}')
