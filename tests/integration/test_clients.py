"""The recipes of docs/clients.md with the unmodified clients, each of which changes nothing but the address."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_queue.shared.vectors import normalise
from tests.environments import program
from tests.harness import ROOT, Api, Stack
from tests.wire import Vectors, embed_images, embed_texts, same, vectors

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

KEY, WRONG = "clients-key-52", "clients-wrong-key-9"
WORDS = ["dog face", "pizza"]
DOG = ROOT / "cli" / "samples" / "dog.png"
EXAMPLE = "127.0.0.1:9001"  # the service of the recipes
FORMS = ["", ", async"]


def clients_python() -> str:
    """The interpreter that has the clients."""
    python = os.environ.get("CLIP_QUEUE_CLIENTS_PYTHON") or str(ROOT / ".venv-clients" / "bin" / "python")
    if not Path(python).exists():
        hint = "run `make .venv-clients/.done`, or set CLIP_QUEUE_CLIENTS_PYTHON"
        pytest.fail(f"{python} is not there: {hint}", pytrace=False)
    return python


def recipes() -> dict[str, str]:
    """The recipes in Python by their headings, several under one by number."""
    parts = re.split(r"^## (.+)$", (ROOT / "docs" / "clients.md").read_text(), flags=re.MULTILINE)
    found = {}
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
            found[f"{title} {number + 1}" if number else title] = code
    return found


RECIPES = recipes()
OF_THE_SDK = "Roboflow's inference-sdk"


def client(python: str, folder: Path, script: str, *args: str) -> Any:
    """What a script printed as JSON, run by another interpreter."""
    env = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper() and k != "PYTHONPATH"}
    command = [python, str(Path(__file__).with_name(script)), *args]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def keyed(served: tuple[Stack, Api]) -> Any:
    """An API that asks for a key."""
    api = served[0].api(api_keys=KEY, model_aliases="text-embedding-3-small=emoji-mini")
    served[0].ready(api)
    yield api
    logs = api.log.read_text()
    assert KEY not in logs
    assert WRONG not in logs
    assert "Traceback" not in logs
    api.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients")
    shutil.copy(DOG, folder / "dog.png")
    return folder


@pytest.fixture(scope="module")
def run(keyed: Api, folder: Path) -> dict[str, Any]:
    """What the variables of each recipe held."""
    here = keyed.url.removeprefix("http://")
    ready = {name: code.replace(EXAMPLE, here).replace("KEY", KEY) for name, code in RECIPES.items()}
    ready = {name: code.replace(f"_API_{KEY}", "_API_KEY") for name, code in ready.items()}
    sdk = {OF_THE_SDK: ready.pop(OF_THE_SDK)}
    seen: dict[str, Any] = {}
    for python, some in ((clients_python(), ready), (program("sdk", "SDK_PYTHON"), sdk)):
        (folder / "recipes.json").write_text(json.dumps(some))
        seen |= client(python, folder, "client_recipes.py", "recipes.json")
    return seen


@pytest.fixture(scope="module")
def seen(keyed: Api, folder: Path) -> dict[str, Any]:
    """What the openai client returned or raised, call by call."""
    out: dict[str, Any] = client(clients_python(), folder, "openai_client.py", keyed.url, str(folder), KEY, WRONG)
    return out


@pytest.fixture(scope="module")
def raw(served: tuple[Stack, Api]) -> dict[str, Vectors]:
    """The features of the same inputs by the CLIP routes."""
    with served[1].client() as http:
        return {"texts": vectors(embed_texts(http, WORDS)), "dog": vectors(embed_images(http, [DOG.read_bytes()]))}


@pytest.fixture(scope="module")
def expected(raw: dict[str, Vectors]) -> dict[str, Vectors]:
    return {name: normalise(rows) for name, rows in raw.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_the_vectors_of_its_inputs(
    run: dict[str, Any], name: str, raw: dict[str, Vectors], expected: dict[str, Vectors]
) -> None:
    found = run[name]
    assert "raised" not in found, found["raised"]
    texts, dog = expected["texts"], expected["dog"]
    held = {variable: np.array(value, np.float32) for variable, value in found.items()}
    if name == "OpenAI":
        same(np.stack([held["dog"], held["pizza"], held["photo"]]), np.concatenate([texts, dog]))
    elif name == "Chroma 2":  # it sends images as JPEG
        same(normalise(held["raw"][1:]), texts)
        assert normalise(held["raw"])[0] @ dog[0] > 0.9
    elif name == OF_THE_SDK:
        same(held["raw"], raw["texts"])
        same(held["image"][None], raw["dog"])
        np.testing.assert_allclose(held["similarity"], texts @ dog[0], atol=1e-5)
    else:
        same(held["vectors"], texts)
        if name != "Chroma":
            same(held["query"][None], texts[:1])


def test_there_is_a_recipe_of_each_client() -> None:
    assert list(RECIPES) == [
        "OpenAI",
        "LangChain",
        "LangChain's client of infinity",
        "LlamaIndex",
        "Haystack",
        "Chroma",
        "Chroma 2",
        OF_THE_SDK,
    ]


def rows(answer: dict[str, Any]) -> Vectors:
    assert "raised" not in answer, answer
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return np.array([one["embedding"] for one in answer["data"]], np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_openai_texts_and_images(seen: dict[str, Any], expected: dict[str, Vectors], form: str) -> None:
    texts, dog = expected["texts"], expected["dog"]
    same(rows(seen["one text" + form]), texts[:1])
    same(rows(seen["texts and an image" + form]), np.concatenate([texts, dog]))
    same(rows(seen["images by modality" + form]), dog)
    for name in ("numbers", "the model's own dimensions", "alias"):
        same(rows(seen[name + form]), texts)
        assert seen[name + form]["model"] == "emoji-mini"
    many = rows(seen["as many as fit" + form])
    assert many.shape == (2048, 128)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)
    assert len(np.unique(many.round(4), axis=0)) > 1000


def test_openai_asks_for_base64_when_nothing_is_said(seen: dict[str, Any]) -> None:
    assert seen["sent by default"]["encoding_format"] == "base64"
    assert seen["headers"]["x-clip-queue-model"] == "emoji-mini"


@pytest.mark.parametrize("form", FORMS)
def test_openai_errors_are_of_the_right_kind(seen: dict[str, Any], form: str) -> None:
    kinds = {
        "one bad input": ("BadRequestError", 400, "bad_image", "input[2]"),
        "too long": ("BadRequestError", 400, "text_too_long", None),
        "tokens": ("BadRequestError", 400, "bad_input", None),
        "other dimensions": ("BadRequestError", 400, "bad_input", None),
        "too many": ("BadRequestError", 400, "bad_input", None),
        "unknown model": ("NotFoundError", 404, "model_not_found", "model"),
    }
    for name, (raised, status, code, param) in kinds.items():
        error = seen[name + form]
        assert (error["raised"], error["status_code"], error["code"], error["param"]) == (raised, status, code, param)
        assert error["request_id"]
    assert "input[2]: Could not load input image." in seen["one bad input" + form]["message"]


def test_openai_keys_and_models(seen: dict[str, Any]) -> None:
    for name in ("wrong key", "wrong key, models"):
        assert (seen[name]["raised"], seen[name]["code"]) == ("AuthenticationError", "invalid_api_key")
    (model,) = seen["models"]["data"]
    assert model == seen["model"]
    assert (model["id"], model["object"], model["dimensions"]) == ("emoji-mini", "model", 128)
