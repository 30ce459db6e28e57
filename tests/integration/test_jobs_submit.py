"""The job door: what it accepts, what it answers, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.images import base64_image, noise_image
from tests.jobs_api import ended, look, moment, submit, submit_texts, succeeded
from tests.team import Team
from tests.wire import COMPARE_KEYS, EMBED_KEYS, embed_images, embed_texts, ok, refused, same, vectors

pytestmark = pytest.mark.timeout(400)

SAME = 1e-6  # of a vector's length
ENCODED = [noise_image(seed) for seed in range(3)]
IMAGES = [base64_image(data) for data in ENCODED]
BROKEN = {"type": "base64", "value": "bm8gcGljdHVyZQ=="}


def test_a_job_is_accepted_at_once_and_its_document_tells_its_life(solo: Team) -> None:
    with solo.busy():
        asked = time.time()
        job = submit(solo.http, task="embed_text", text=["first", "second"])
        assert job["state"] == "queued"
        assert job["items"] == {"total": 2, "done": 0, "failed": 0}
        assert (job["task"], job["model"], job["priority"]) == ("embed_text", "emoji-mini", "background")
        assert (job["started"], job["finished"], job["expires"], job["result"]) == (None, None, None, None)
        assert abs(moment(job["created"]) - asked) < 5
        assert job["queue"]["position"] == 0
        behind = submit(solo.http, task="embed_text", text="behind it")
        assert behind["queue"]["position"] == 1
        assert 0 <= job["queue"]["age_s"] <= look(solo.http, job["id"])["queue"]["age_s"] < 30
    done = ended(solo.http, job["id"])
    assert done["state"] == "succeeded"
    assert done["items"] == {"total": 2, "done": 2, "failed": 0}
    assert moment(done["created"]) <= moment(done["started"]) <= moment(done["finished"])
    assert moment(done["expires"]) - moment(done["finished"]) == pytest.approx(3600, abs=0.01)
    assert (done["queue"], done["error"], done["attempts"]) == (None, None, 1)
    assert done["timings"].keys() == {"queue", "prepare", "wait", "forward"}
    assert list(done["result"])[:4] == EMBED_KEYS


def test_both_doors_give_the_same_vectors(solo: Team) -> None:
    texts = ["a red heart", "pizza", ""]
    job = submit_texts(solo.http, *texts)
    same(succeeded(solo.http, job), vectors(embed_texts(solo.http, texts)), SAME)
    job = submit(solo.http, task="embed_image", image=IMAGES)["id"]
    same(succeeded(solo.http, job), vectors(embed_images(solo.http, ENCODED)), SAME)


@pytest.mark.parametrize("prompt", [["heart", "pizza"], {"h": "heart", "p": "pizza"}, "heart"])
def test_a_comparison_is_answered_in_the_shape_of_the_synchronous_route(solo: Team, prompt: Any) -> None:
    body = {"subject": IMAGES[0], "prompt": prompt}
    direct = ok(solo.http.post("/clip/compare", json=body))["similarity"]
    job = submit(solo.http, task="compare", **body)["id"]
    result = ended(solo.http, job)["result"]
    assert list(result) == COMPARE_KEYS
    if isinstance(prompt, dict):
        assert result["similarity"].keys() == direct.keys()
        direct, result["similarity"] = [*direct.values()], [*result["similarity"].values()]
    np.testing.assert_allclose(result["similarity"], direct, atol=SAME)


def test_a_job_may_hold_more_items_than_a_request(solo: Team) -> None:
    images = [*ENCODED, *ENCODED, *ENCODED]
    refused(embed_images(solo.http, images), 400)
    got = succeeded(solo.http, submit(solo.http, task="embed_image", image=[*IMAGES, *IMAGES, *IMAGES])["id"])
    same(got[-3:], vectors(embed_images(solo.http, ENCODED)), SAME)


def test_a_job_may_hold_a_thousand_texts(solo: Team) -> None:
    texts = [f"one of a thousand, {i}" for i in range(1000)]
    got = succeeded(solo.http, submit_texts(solo.http, *texts))
    same(got[-3:], vectors(embed_texts(solo.http, texts[-3:])), SAME)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"task": "embed_text", "text": ["x"] * 5}, 400, "at most 4"),
        ({"task": "embed_text", "text": []}, 400, "empty"),
        ({"task": "embed_text", "text": "x", "priority": "interactive"}, 400, "interactive_jobs"),
        ({"task": "embed_text", "text": "x", "clip_version_id": "no-such-model"}, 404, "not known"),
    ],
)
def test_what_cannot_be_done_is_refused_at_the_door(
    solo: Team, brief: httpx.Client, body: dict[str, Any], status: int, says: str
) -> None:
    assert says in refused(brief.post("/jobs", json=body), status)["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"text": "no task"},
        {"task": "embed_audio", "text": "x"},
        {"task": "embed_text"},
        {"task": "embed_text", "text": "x", "deadline_s": 0},
        {"task": "embed_text", "text": "x", "on_error": "ignore"},
    ],
)
def test_a_body_that_is_no_job_is_422(solo: Team, body: dict[str, Any]) -> None:
    response = solo.http.post("/jobs", json=body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][0] == "body"


@pytest.mark.parametrize("word", ["bulk", "Background", "", "a secret", 7, None, ["a secret"], {"a secret": "bulk"}])
def test_another_priority_is_422_with_those_that_there_are(solo: Team, brief: httpx.Client, word: Any) -> None:
    body = {"task": "embed_text", "text": "x", "priority": word}
    for http, allowed in ((solo.http, "'background' or 'interactive'"), (brief, "'background'")):
        response = http.post("/jobs", json=body)
        assert response.status_code == 422
        place = ["body", "embed_text", "priority"]
        assert response.json() == {"detail": [{"loc": place, "msg": f"Input should be {allowed}", "type": "enum"}]}


@pytest.mark.parametrize("task", ["embed_shard", "a secret", ["a secret"], None])
def test_another_task_is_422_with_those_that_there_are(solo: Team, task: Any) -> None:
    response = solo.http.post("/jobs", json={"task": task, "text": "x"})
    assert response.status_code == 422
    says = "'task' should be 'embed_image', 'embed_text', 'compare' or 'embed_dataset'"
    assert response.json() == {"detail": [{"loc": ["body"], "msg": says, "type": "union_tag_invalid"}]}


def test_a_bad_url_is_refused_before_the_job_is_accepted_with_its_index(solo: Team) -> None:
    bad = {"type": "url", "value": "https://127.0.0.1/image.png"}
    for body in ({"task": "embed_image", "image": [*IMAGES, bad]}, {"task": "embed_image", "image": [*IMAGES, BROKEN]}):
        response = solo.http.post("/jobs", json=body)
        if response.status_code == 202:  # only a decoder can say: the job tells
            document = ended(solo.http, response.json()["id"])
            assert (document["state"], document["error"]["index"]) == ("failed", 3)
        else:
            assert refused(response, 400)["index"] == 3
    assert solo.http.post("/jobs", json={"task": "embed_image", "image": [*IMAGES, bad]}).status_code == 400


def test_openapi_tells_the_jobs_apart_by_their_task(solo: Team) -> None:
    api = ok(solo.http.get("/openapi.json"))
    schema = api["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["discriminator"]["propertyName"] == "task"
    mapping = schema["discriminator"]["mapping"]
    assert mapping.keys() == {"embed_image", "embed_text", "compare", "embed_dataset"}
    assert {option["$ref"] for option in schema["oneOf"]} == set(mapping.values())
    for task, reference in mapping.items():
        found = api["components"]["schemas"][reference.rpartition("/")[2]]
        assert found["properties"]["task"]["const"] == task
    assert not [ref for ref in _references(api) if ref.rpartition("/")[2] not in api["components"]["schemas"]]


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
