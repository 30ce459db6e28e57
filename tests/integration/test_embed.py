"""The embed routes: every form of a request, exactly the promised answer, and the model's own numbers in it."""

from __future__ import annotations

import base64
import json
import uuid

import httpx
import numpy as np
import pytest

from clip_queue.worker.inference.clip_model import ClipModel
from tests.images import noise_image
from tests.reference import Reference
from tests.wire import EMBED_KEYS, embed_images, embed_texts, ok, refused, same, vectors

IMAGES = [noise_image(seed, size=(40 + 16 * seed, 96)) for seed in range(8)]
TEXTS = ["red heart", "a cat", "", "Größe 東京 🙂", "a longer text, of some more words than the others have", "x" * 9]

B64 = base64.b64encode(IMAGES[0]).decode()
IMAGE_FORMS = {
    "object": {"type": "base64", "value": B64},
    "list of one": [{"type": "base64", "value": B64}],
    "upper-case type": {"type": "BASE64", "value": B64},
    "mixed-case type": {"type": "Base64", "value": B64},
    "other keys beside type and value": {"type": "base64", "value": B64, "id": 7},
    "bare string": B64,
    "list of a bare string": [B64],
    "data URI": f"data:image/png;base64,{B64}",
    "data URI in an object": {"type": "base64", "value": f"data:image/jpeg;base64,{B64}"},
    "data URI of svg+xml": f"data:image/svg+xml;base64,{B64}",
    "data URI in capitals": f"DATA:IMAGE/PNG;BASE64,{B64}",
    "wrapped lines": "\n".join(B64[i : i + 76] for i in range(0, len(B64), 76)),
}


@pytest.fixture(scope="module")
def expected(reference: Reference) -> np.ndarray:
    return reference.images(IMAGES)


@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_an_image_may_be_sent_in_every_documented_form(http: httpx.Client, expected: np.ndarray, form: str) -> None:
    got = vectors(http.post("/clip/embed_image", json={"image": IMAGE_FORMS[form]}))
    same(got, expected[:1])


def test_images_come_back_in_order_as_raw_features_of_open_clip(http: httpx.Client, expected: np.ndarray) -> None:
    got = vectors(embed_images(http, IMAGES))
    same(got, expected)
    assert len({row.tobytes() for row in got}) == len(IMAGES)
    assert np.abs(np.linalg.norm(got, axis=1) - 1).min() > 0.01, "features must not be normalised"


def test_images_of_equal_width_are_still_as_many_embeddings(http: httpx.Client) -> None:
    # The original answers one embedding for N images of equal width.
    assert vectors(embed_images(http, [noise_image(s, size=(64, 64)) for s in range(3)])).shape == (3, 128)


def test_the_same_image_twice_gets_the_same_vector_twice(http: httpx.Client) -> None:
    got = vectors(embed_images(http, [IMAGES[1], IMAGES[0], IMAGES[1]]))
    same(got[:1], got[2:])


def test_texts_come_back_in_order_as_raw_features_of_open_clip(http: httpx.Client, reference: Reference) -> None:
    got = vectors(embed_texts(http, TEXTS))
    same(got, reference.texts(TEXTS))
    assert np.abs(np.linalg.norm(got, axis=1) - 1).min() > 0.01, "features must not be normalised"


def test_one_text_may_be_a_string_or_a_list_of_one(http: httpx.Client) -> None:
    as_string = vectors(http.post("/clip/embed_text", json={"text": "a cat"}))
    as_list = vectors(http.post("/clip/embed_text", json={"text": ["a cat"]}))
    assert as_string.shape == as_list.shape == (1, 128)
    same(as_string, as_list)


def test_a_direct_forward_of_the_workers_model_gives_the_same(http: httpx.Client, clip: ClipModel) -> None:
    direct = clip.embed_texts([clip.tokenizer(t) for t in TEXTS]).result()
    same(vectors(embed_texts(http, TEXTS)), direct)


def test_an_image_has_one_vector_alone_in_a_batch_and_beside_a_broken_neighbour(http: httpx.Client) -> None:
    alone = vectors(embed_images(http, IMAGES[2:3]))
    among = vectors(embed_images(http, IMAGES))[2:3]
    refused(embed_images(http, [IMAGES[2], b"no image at all"]), 400)
    again = vectors(embed_images(http, IMAGES[2:3]))
    same(among, alone, within=1e-6)
    same(again, alone, within=1e-6)


def test_a_text_has_one_vector_whatever_it_is_batched_with_and_whether_remembered(http: httpx.Client) -> None:
    alone = vectors(embed_texts(http, ["one text of its own"]))  # from here on the worker remembers it
    long = "a text that is longer than the other, so that the other one is padded"
    among = vectors(embed_texts(http, [long, "one text of its own"]))[1:]
    other_way = vectors(embed_texts(http, [long + "!", "another text of its own"]))[1:]
    same(among, alone, within=1e-6)
    same(vectors(embed_texts(http, ["another text of its own"])), other_way, within=1e-6)


@pytest.mark.parametrize("route", ["embed_image", "embed_text"])
def test_an_embed_answer_has_exactly_the_promised_keys(http: httpx.Client, route: str) -> None:
    body = {"image": IMAGE_FORMS["object"]} if route == "embed_image" else {"text": "a cat"}
    answer = ok(http.post(f"/clip/{route}", json=body))
    assert list(answer) == EMBED_KEYS
    assert str(uuid.UUID(answer["inference_id"])) == answer["inference_id"]
    assert answer["frame_id"] is None
    assert 0 < answer["time"] < 30
    assert all(isinstance(x, float) for x in answer["embeddings"][0])


def test_answers_name_model_and_weights_and_where_the_time_went(http: httpx.Client, clip: ClipModel) -> None:
    for response in (embed_images(http, IMAGES[:2]), embed_texts(http, ["a cat"])):
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-clip-queue-model"] == "emoji-mini"
        assert response.headers["x-clip-queue-fingerprint"] == clip.fingerprint
        assert "photographs" in response.headers["x-clip-queue-notice"]
        stages = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
        assert stages.keys() == {"queue", "prepare", "wait", "forward"}
        assert all(0 <= float(ms) < 30_000 for ms in stages.values())


@pytest.mark.parametrize("version", ["emoji-mini", None])
def test_the_default_model_may_be_named_or_left_out_or_null(http: httpx.Client, version: str | None) -> None:
    got = vectors(embed_texts(http, ["a cat"], clip_version_id=version))
    same(got, vectors(embed_texts(http, ["a cat"])))


def test_keys_that_the_original_knows_and_keys_nobody_knows_are_ignored(http: httpx.Client) -> None:
    ignored = {
        "id": "42",
        "source": "a script",
        "source_info": {"a": [1]},
        "start": 1.5,
        "usage_billable": False,
        "disable_model_monitoring": True,
        "model_id": "clip/ViT-B-16",
        "api_key": None,
        "of nobody": [None],
    }
    embedded = vectors(embed_texts(http, ["a cat"], **ignored))
    same(embedded, vectors(embed_texts(http, ["a cat"])))


def test_query_parameters_that_the_original_knows_are_ignored(http: httpx.Client) -> None:
    query = {"countinference": "false", "service_secret": "s", "api_key": "any, where no keys are set", "other": "1"}
    assert vectors(http.post("/clip/embed_text", params=query, json={"text": "a cat"})).shape == (1, 128)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_a_body_is_json_whatever_its_content_type_says(http: httpx.Client, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = http.post("/clip/embed_text", content=json.dumps({"text": "a cat"}), headers=headers)
    assert ("content-type" in response.request.headers) == bool(content_type)
    assert vectors(response).shape == (1, 128)


def test_the_most_images_and_texts_that_fit_are_answered(http: httpx.Client) -> None:
    texts = [f"text {i}" for i in range(1000)]
    assert vectors(embed_texts(http, texts)).shape == (len(texts), 128)
    assert vectors(embed_images(http, IMAGES)).shape == (8, 128)
