"""What else a client of Roboflow Inference asks for, and the examples of the API's own documentation."""

from __future__ import annotations

import uuid

import httpx
import pytest

from clip_queue.version import __version__
from clip_queue.worker.inference.clip_model import ClipModel
from tests.wire import COMPARE_KEYS, EMBED_KEYS, ok


def test_the_root_answers(http: httpx.Client) -> None:
    assert http.get("/").status_code < 400
    assert http.head("/").status_code < 500


def test_info_has_name_version_and_the_processs_own_uuid(http: httpx.Client) -> None:
    info = ok(http.get("/info"))
    assert info.keys() == {"name", "version", "uuid"}
    assert info["version"] == __version__
    assert str(uuid.UUID(info["uuid"])) == info["uuid"]
    assert ok(http.get("/info")) == info


def test_the_registry_lists_what_live_workers_serve(http: httpx.Client, clip: ClipModel) -> None:
    assert ok(http.get("/model/registry")) == {
        "models": [
            {
                "model_id": "clip/emoji-mini",
                "name": "emoji-mini",
                "task_type": "embedding",
                "source": "shipped:emoji-mini",
                "fingerprint": clip.fingerprint,
                "dimension": 128,
                "context_length": 32,
                "image_size": [64, 64],
                "precision": "fp32",
            }
        ]
    }


@pytest.mark.parametrize("route", ["/model/add", "/model/remove", "/model/clear"])
def test_models_may_be_added_and_cleared_without_effect(http: httpx.Client, route: str) -> None:
    before = ok(http.get("/model/registry"))
    assert http.post(route).is_success
    assert http.post(route, json={"model_id": "a/1", "model_type": "clip", "api_key": None}).is_success
    assert http.post(route, content=b"no json").is_success
    assert ok(http.get("/model/registry")) == before


def test_healthz_and_readiness_say_what_the_original_says(http: httpx.Client) -> None:
    assert ok(http.get("/healthz")) == {"status": "healthy"}
    assert ok(http.get("/readiness")) == {"status": "ready"}


def test_the_documentation_is_served(http: httpx.Client) -> None:
    assert "openapi.json" in http.get("/docs").text


def test_every_example_of_a_clip_route_in_the_documentation_runs_as_it_stands(http: httpx.Client) -> None:
    paths = ok(http.get("/openapi.json"))["paths"]
    ran = 0
    for path in ("/clip/embed_image", "/clip/embed_text", "/clip/compare"):
        for name, example in paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"].items():
            answer = ok(http.post(path, json=example["value"]))
            assert list(answer) == (COMPARE_KEYS if path == "/clip/compare" else EMBED_KEYS), name
            ran += 1
    assert ran >= 7


def test_every_other_example_in_the_documentation_is_accepted(http: httpx.Client) -> None:
    paths = ok(http.get("/openapi.json"))["paths"]
    for path, methods in paths.items():
        if path.startswith("/clip/") or "{" in path or "post" not in methods:
            continue
        examples = methods["post"].get("requestBody", {}).get("content", {}).get("application/json", {})
        for name, example in examples.get("examples", {}).items():
            response = http.post(path, json=example["value"])
            if example["value"].get("task") == "embed_dataset":  # which the settings do not allow here
                assert response.status_code == 403
                continue
            assert response.is_success, f"{path} {name}: {response.status_code} {response.text[:200]}"
