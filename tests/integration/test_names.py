"""A model whose name has what names elsewhere have, through queues, keys and routes; and its aliases."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.checkpoints import tiny_checkpoint
from tests.harness import Api, stack
from tests.wire import embed_texts, ok, vectors

NAME = "org/tiny-clip:v1"
TRAP = "a:interactive"  # looks like the place of a lane of a model 'a'


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("names") / "tiny")
    models = ",".join(f"{name}=local-dir:{folder}" for name in (NAME, TRAP))
    aliases = f"text-embedding-ada-002={NAME}"
    with stack(tmp_path_factory.mktemp("names stack"), models=models, model_aliases=aliases) as it:
        worker, api = it.worker(), it.api()
        it.ready(worker, api)
        yield api


@pytest.fixture
def named(api: Api) -> Iterator[httpx.Client]:
    with api.client() as client:
        yield client


@pytest.mark.parametrize("asked", [NAME, TRAP, f"clip/{NAME}", "text-embedding-ada-002", None])
def test_it_is_asked_for_by_name_or_alias(named: httpx.Client, asked: str | None) -> None:
    served = TRAP if asked == TRAP else NAME
    answer = embed_texts(named, ["a cat"], clip_version_id=asked)
    assert vectors(answer).shape == (1, 32)
    assert answer.headers["X-Clip-Queue-Model"] == served
    body = ok(named.post("/v1/embeddings", json={"input": "a cat", "model": asked}))
    assert body["model"] == served


def test_a_job_of_it_is_run_in_the_background(named: httpx.Client) -> None:
    for name in (NAME, TRAP):
        job = {"task": "embed_text", "text": ["a", "b"], "clip_version_id": name}
        submitted = named.post("/jobs", json=job).json()
        assert submitted["model"] == name
        state = ok(named.get(f"/jobs/{submitted['id']}", params={"wait": 30}))["state"]
        while state in ("queued", "running"):
            state = ok(named.get(f"/jobs/{submitted['id']}", params={"wait": 30}))["state"]
        assert state == "succeeded"


def test_it_is_listed(named: httpx.Client) -> None:
    ids = [model["id"] for model in ok(named.get("/v1/models"))["data"]]
    assert ids == [NAME, TRAP]
    for name in ids:
        assert ok(named.get(f"/v1/models/{name}"))["id"] == name
    assert [model["model_id"] for model in ok(named.get("/model/registry"))["models"]] == [f"clip/{n}" for n in ids]
