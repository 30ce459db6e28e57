"""The compare route: every pairing of images and words, every form of its prompts, the cosines that come back."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import numpy as np
import pytest

from tests.images import base64_image, noise_image
from tests.reference import Reference
from tests.wire import COMPARE_KEYS, cosines, ok, refused

IMAGES = [noise_image(seed) for seed in range(20, 24)]
WORDS = ["red heart", "a cat", "pizza", "東京"]
SENT = {"image": [base64_image(p) for p in IMAGES], "text": WORDS}


def compare(http: httpx.Client, **body: object) -> Any:
    return ok(http.post("/clip/compare", json=body))["similarity"]


@pytest.fixture(scope="module")
def features(reference: Reference) -> dict[str, np.ndarray]:
    return {"image": reference.images(IMAGES), "text": reference.texts(WORDS)}


@pytest.mark.parametrize("prompt_type", ["text", "image"])
@pytest.mark.parametrize("subject_type", ["text", "image"])
def test_all_four_pairings_give_the_cosines_of_the_raw_features(
    http: httpx.Client, features: dict[str, np.ndarray], subject_type: str, prompt_type: str
) -> None:
    got = compare(
        http,
        subject=SENT[subject_type][0],
        subject_type=subject_type,
        prompt=SENT[prompt_type],
        prompt_type=prompt_type,
    )
    np.testing.assert_allclose(got, cosines(features[subject_type], features[prompt_type]), atol=1e-5)
    if subject_type == prompt_type:
        assert got[0] == pytest.approx(1, abs=1e-5)


def test_without_types_an_image_is_compared_with_words(http: httpx.Client, features: dict[str, np.ndarray]) -> None:
    got = compare(http, subject=SENT["image"][0], prompt=WORDS)
    np.testing.assert_allclose(got, cosines(features["image"], features["text"]), atol=1e-5)


def test_named_prompts_come_back_under_their_names_in_order(
    http: httpx.Client, features: dict[str, np.ndarray]
) -> None:
    names = ["b", "a", "", "ключ"]
    got = compare(http, subject=SENT["image"][0], prompt=dict(zip(names, WORDS, strict=True)))
    assert list(got) == names
    np.testing.assert_allclose(list(got.values()), cosines(features["image"], features["text"]), atol=1e-5)
    images = dict(zip(names, SENT["image"], strict=True))
    got = compare(http, subject="a cat", subject_type="text", prompt=images, prompt_type="image")
    np.testing.assert_allclose(list(got.values()), cosines(features["text"][1:2], features["image"]), atol=1e-5)


def test_one_prompt_is_still_answered_by_a_list(http: httpx.Client, features: dict[str, np.ndarray]) -> None:
    expected = cosines(features["image"], features["text"][:1])
    for prompt in (WORDS[0], WORDS[:1]):
        got = compare(http, subject=SENT["image"][0], prompt=prompt)
        assert isinstance(got, list)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_an_object_with_type_and_value_is_one_image_not_two_names(
    http: httpx.Client, features: dict[str, np.ndarray]
) -> None:
    got = compare(http, subject=SENT["image"][0], prompt=SENT["image"][1], prompt_type="image")
    np.testing.assert_allclose(got, cosines(features["image"], features["image"][1:2]), atol=1e-5)


def test_an_object_with_only_one_of_type_and_value_is_names(http: httpx.Client) -> None:
    names = {"type": "a cat", "other": "pizza"}
    assert list(compare(http, subject=SENT["image"][0], prompt=names)) == ["type", "other"]


@pytest.mark.parametrize("prompt", ["a cat", {"one": "a cat"}], ids=["list", "object"])
def test_a_compare_answer_has_exactly_the_promised_keys(http: httpx.Client, prompt: object) -> None:
    response = http.post("/clip/compare", json={"subject": SENT["image"][0], "prompt": prompt})
    answer = ok(response)
    assert list(answer) == COMPARE_KEYS
    assert [answer[key] for key in ("frame_id", "parent_id")] == [None] * 2
    assert str(uuid.UUID(answer["inference_id"])) == answer["inference_id"]
    assert answer["time"] > 0
    assert response.headers["x-clip-queue-model"] == "emoji-mini"
    assert response.headers["x-clip-queue-fingerprint"]
    assert "forward;dur=" in response.headers["server-timing"]


def test_a_broken_prompt_is_named_by_its_place_and_a_broken_subject_has_none(http: httpx.Client) -> None:
    broken = base64_image(b"no image")
    prompts = [SENT["image"][0], broken, SENT["image"][1]]
    body = {"subject": "a", "subject_type": "text", "prompt": prompts, "prompt_type": "image"}
    answer = refused(http.post("/clip/compare", json=body), 400)
    assert answer == {"message": "Could not load input image. Cause: Data is not image.", "index": 1}
    answer = refused(http.post("/clip/compare", json={"subject": broken, "prompt": ["a", "b"]}), 400)
    assert answer == {"message": "Could not load input image. Cause: Data is not image."}


def test_eight_prompts_fit_and_so_do_eight_names(http: httpx.Client) -> None:
    words = [f"word {i}" for i in range(8)]
    assert len(compare(http, subject=SENT["image"][0], prompt=words)) == 8
    assert len(compare(http, subject=SENT["image"][0], prompt={w: w for w in words})) == 8
