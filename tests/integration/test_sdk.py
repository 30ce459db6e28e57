"""The unmodified inference-sdk as a client: every CLIP method, plain and async, changes nothing but the URL."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_queue.shared.vectors import normalise
from tests.environments import clean_environment, program
from tests.harness import Api, Stack
from tests.images import noise_image
from tests.wire import Vectors, cosines, embed_images, embed_texts, same, vectors

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(300)]

KEY, WRONG = "sdk-key-41", "sdk-wrong-key-17"
A, B = noise_image(50, size=(96, 64)), noise_image(51, size=(64, 96))
WORDS = ["a cat", "red heart"]
FORMS = ["", ", async"]
NEWEST = "1.8.3"
VERSIONS = [NEWEST, "0.30.0", "0.9.23"]


def sdk_folder(version: str) -> str:
    """Where the code of an older release is, which uses the packages of the newest one's environment."""
    return str(Path(program("sdk", "SDK_PYTHON")).parent.parent / version)


@pytest.fixture(scope="module", params=VERSIONS)
def seen(
    request: pytest.FixtureRequest, served: tuple[Stack, Api], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the SDK returned or raised, call by call, against an API that asks for a key."""
    python = program("sdk", "SDK_PYTHON")
    folder = tmp_path_factory.mktemp("sdk")
    (folder / "a.png").write_bytes(A)
    (folder / "b.png").write_bytes(B)
    api = served[0].api(api_keys=KEY)
    served[0].ready(api)
    env = clean_environment()
    if request.param != NEWEST:
        env["PYTHONPATH"] = sdk_folder(request.param)
    command = [python, str(Path(__file__).with_name("sdk_client.py")), api.url, str(folder), KEY, WRONG]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = api.log.read_text()
    assert KEY not in logs
    assert WRONG not in logs
    assert "GET " not in logs.replace("GET /readiness", "").replace("GET /model/registry", "")
    api.stop()
    out: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return out


@pytest.fixture(scope="module")
def expected(served: tuple[Stack, Api]) -> dict[str, Vectors]:
    """The same inputs by plain HTTP."""
    with served[1].client() as http:
        return {"images": vectors(embed_images(http, [A, B])), "texts": vectors(embed_texts(http, WORDS))}


def rows(result: Any) -> Vectors:
    """The vectors in the SDK's answer: an object for one input, a list of objects for several."""
    parts = result if isinstance(result, list) else [result]
    for part in parts:
        assert {"embeddings", "time", "frame_id"} <= part.keys()
    return np.array([row for part in parts for row in part["embeddings"]], dtype=np.float32)


def alike(got: Vectors, expected: Vectors, *, exactly: bool) -> None:
    """Check that rows are those of the same files, which may have been sent as JPEG."""
    if exactly:
        same(got, expected)
    assert np.diag(normalise(got) @ normalise(expected).T).min() > 0.95


def reads(seen: dict[str, Any], form: str) -> bool:
    """Whether the SDK sends a file as it is. Older releases open it in their async forms, and send it as JPEG."""
    return not form or seen["version"] == NEWEST


def test_it_is_one_of_the_versions_that_are_promised(seen: dict[str, Any], request: pytest.FixtureRequest) -> None:
    assert seen["version"] == request.node.callspec.params["seen"]


@pytest.mark.parametrize("form", FORMS)
def test_images_are_embedded(seen: dict[str, Any], expected: dict[str, Vectors], form: str) -> None:
    images = expected["images"]
    for name in ("one file", "named model"):
        assert isinstance(seen[name + form], dict)
        alike(rows(seen[name + form]), images[:1], exactly=reads(seen, form))
    alike(rows(seen["two files" + form]), images, exactly=reads(seen, form))


@pytest.mark.parametrize("form", FORMS)
def test_open_images_and_arrays_are_embedded(seen: dict[str, Any], expected: dict[str, Vectors], form: str) -> None:
    # The SDK sends these as JPEG, so they are only nearly the file.
    images = expected["images"]
    got = np.concatenate([rows(seen[name + form]) for name in ("pil", "array")])
    assert got.shape == (2, 128)
    assert cosines(images[:1], got).min() > 0.95
    assert cosines(images[:1], got).min() > cosines(images[:1], images[1:])[0]
    mixed = rows(seen["mixed" + form])
    alike(mixed[1:2], images[1:], exactly=reads(seen, form))
    assert cosines(images[:1], mixed[[0, 2]]).min() > 0.95


def test_several_images_in_one_request_come_back_in_order(seen: dict[str, Any], expected: dict[str, Vectors]) -> None:
    a, b = expected["images"]
    assert len(seen["three in one request"]) == 3
    same(rows(seen["three in one request"]), np.stack([a, b, a]))


@pytest.mark.parametrize("form", FORMS)
def test_texts_are_embedded(seen: dict[str, Any], expected: dict[str, Vectors], form: str) -> None:
    for name in ("one text", "text of a named model"):
        same(rows(seen[name + form]), expected["texts"][:1])
    same(rows(seen["two texts" + form]), expected["texts"])


@pytest.mark.parametrize("form", FORMS)
def test_a_thousand_texts_fit_in_a_call(seen: dict[str, Any], form: str) -> None:
    assert rows(seen["a thousand texts" + form]).shape == (1000, 128)


@pytest.mark.parametrize("form", FORMS)
def test_models_are_listed_loaded_and_unloaded_without_effect(seen: dict[str, Any], form: str) -> None:
    for name in ("list models", "load a model", "unload a model", "unload all models"):
        assert [model["model_id"] for model in seen[name + form]["models"]] == ["clip/emoji-mini"], name


@pytest.mark.parametrize("form", FORMS)
def test_everything_is_compared_with_everything(seen: dict[str, Any], expected: dict[str, Vectors], form: str) -> None:
    images, texts = expected["images"], expected["texts"]
    results = {
        "image to texts": cosines(images, texts),
        "image to one text": cosines(images, texts[:1]),
        "text to images": cosines(texts, images),
        "image to one image": cosines(images, images[1:]),
        "text to texts": cosines(texts, texts),
    }
    for name, cosine in results.items():
        answer = seen[name + form]
        assert set(answer) == {"inference_id", "frame_id", "time", "similarity", "parent_id"}
        within = 1e-5 if reads(seen, form) else 0.05
        np.testing.assert_allclose(answer["similarity"], cosine, atol=within, err_msg=name)
    named = seen["image to named texts" + form]["similarity"]
    assert list(named) == ["cat", "love"]
    np.testing.assert_allclose(list(named.values()), cosines(images, texts), atol=within)
    near, far = seen["image to images" + form]["similarity"]  # of the same image, as JPEG
    assert near > 0.95
    assert near > far


@pytest.mark.parametrize("form", FORMS)
def test_errors_reach_the_caller_with_status_and_message(seen: dict[str, Any], form: str) -> None:
    told = {name: seen[name + form] for name in ("unknown model", "too many prompts", "no image")}
    assert {name: error["status"] for name, error in told.items()} == {
        "unknown model": 404,
        "too many prompts": 400,
        "no image": 400,
    }
    if form:
        return  # the SDK's async forms keep HTTP's reason phrase, not the body's message
    assert "of-nobody" in told["unknown model"]["message"]
    assert "at most 8" in told["too many prompts"]["message"]
    assert told["no image"]["message"] == "Could not load input image. Cause: Data is not image."


@pytest.mark.parametrize("who", ["wrong key", "no key"])
@pytest.mark.parametrize("call", ["image", "text", "compare", "text, async"])
def test_a_wrong_or_missing_key_is_told_as_such(seen: dict[str, Any], who: str, call: str) -> None:
    error = seen[f"{who}: {call}"]
    assert error["raised"] == "HTTPCallErrorError"
    assert error["status"] == 401
    assert error["message"] == ("Unauthorized" if call.endswith("async") else "Unauthorized api_key")
