"""Searching an output: the query, by the right model, and what is printed of the hits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.search import query as queries
from clip_queue.bulk.search.index import Hit, Index, search
from clip_queue.cli.demo import load_samples
from clip_queue.cli.search import search as command
from clip_queue.cli.search import show
from clip_queue.shared.errors import BadInput, TextTooLong
from clip_queue.shared.models import CATALOGUE
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode
from tests.checkpoints import tiny_checkpoint
from tests.images import noise_image
from tests.unit.bulk.outputs_by_hand import MODEL, make_output

# The query


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(models=["emoji-mini"], device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def clip(settings: Settings) -> ClipModel:
    return ClipModel(CATALOGUE["emoji-mini"], settings)


@pytest.fixture(scope="module")
def samples(clip: ClipModel, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """The sample images and their names, embedded directly; raw vectors, in one shard."""
    found = load_samples()
    limits = {"max_bytes": settings.max_image_bytes, "max_pixels": settings.max_image_pixels}
    images = clip.embed_images([decode(s.png, clip.preprocess, **limits) for s in found]).result().astype(np.float16)
    texts = clip.embed_texts([clip.tokenizer(s.name) for s in found]).result().astype(np.float16)
    url = str(tmp_path_factory.mktemp("samples"))
    return make_output(url, [images], [texts], model=clip.info, names=[f"{s.name}.png" for s in found])


def test_each_name_finds_its_image(samples: Output, clip: ClipModel, settings: Settings) -> None:
    index = Index(samples.url)
    found = [index.nearest(clip.embed_texts([clip.tokenizer(s.name)]).result()[0], 1)[0] for s in load_samples()]
    right = [hit.image_path == f"{sample.name}.png" for hit, sample in zip(found, load_samples(), strict=True)]
    assert all(right)
    hits = search(samples.url, "dog", top=3, settings=settings)
    assert (len(hits), hits[0].image_path) == (3, "dog.png")


def test_a_query_is_prepared_as_the_vectors_were_whatever_is_set_here(settings: Settings) -> None:
    there = settings.model_copy(update={"precision": "bf16", "resize": "fast", "jpeg_draft": 2.0})
    clip = ClipModel(CATALOGUE["emoji-mini"], there)
    jpeg = noise_image(7, size=(640, 480), format="JPEG")
    limits = {"max_bytes": settings.max_image_bytes, "max_pixels": settings.max_image_pixels, "draft": clip.draft}
    expected = clip.embed_images([decode(jpeg, clip.preprocess, **limits)]).result()[0]
    found = queries.embed_query(clip.info, None, jpeg, None, settings)
    np.testing.assert_array_equal(found, queries.unit_query(expected))


def test_an_image_finds_itself_and_its_name(samples: Output, settings: Settings) -> None:
    png = next(s.png for s in load_samples() if s.name == "pizza")
    hit = search(samples.url, image=png, top=1, settings=settings)[0]
    assert (hit.image_path, round(hit.score, 3)) == ("pizza.png", 1)
    assert search(samples.url, image=png, top=1, among="texts", settings=settings)[0].image_path == "pizza.png"


def test_the_outputs_precision_is_used_not_the_settings(samples: Output) -> None:
    other = Settings(models=["emoji-mini"], device="cpu", precision="bf16")
    assert search(samples.url, "dog", top=1, settings=other)[0].image_path == "dog.png"


def test_vectors_of_another_model_are_refused(tmp_path: Path, settings: Settings) -> None:
    url = make_output(str(tmp_path), [np.eye(MODEL.dimension, dtype=np.float32)]).url
    with pytest.raises(BadInput, match=r"f{16}.*emoji-mini.*--model NAME=SOURCE") as told:
        search(url, "dog", settings=settings)
    assert ClipModel(CATALOGUE["emoji-mini"], settings).fingerprint in told.value.message


def test_exactly_one_query(samples: Output, settings: Settings) -> None:
    with pytest.raises(BadInput, match="exactly one"):
        search(samples.url, settings=settings)
    with pytest.raises(BadInput, match="exactly one"):
        search(samples.url, "dog", image=noise_image(), settings=settings)


def test_the_limits_are_the_doors(samples: Output, settings: Settings) -> None:
    with pytest.raises(TextTooLong, match="2001 characters, 2000 at most"):
        search(samples.url, "x" * 2001, settings=settings)
    with pytest.raises(TextTooLong, match="tokens, 32 fit"):
        search(samples.url, "dog " * 40, settings=settings)
    with pytest.raises(BadInput, match="Data is not image"):
        search(samples.url, image=b"garbage", settings=settings)
    with pytest.raises(BadInput, match="at least 1"):
        search(samples.url, "dog", top=0, settings=settings)


def test_a_model_of_a_folder_is_named(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "mine-1")
    plain = Settings(models=["emoji-mini"], device="cpu")
    served = Settings(models=[f"mine=local-dir:{folder}"], device="cpu", precision="fp32")
    info = ClipModel(queries.parse_model(served.models[0]), served).info
    url = make_output(str(tmp_path / "out"), [np.eye(32, dtype=np.float32)], model=info).url
    with pytest.raises(BadInput, match=r"--model mine=local-dir:/PATH/mine-1"):
        search(url, "dog", settings=plain)
    with pytest.raises(BadInput, match="cannot be loaded"):
        search(url, "dog", model="mine=local-dir:/nowhere", settings=plain)
    with pytest.raises(BadInput, match="unknown model 'his'"):
        search(url, "dog", model="his", settings=plain)
    with pytest.raises(BadInput, match="other weights"):
        search(url, "dog", model="emoji-mini", settings=plain)
    for settings, model in ((plain, f"any=local-dir:{folder}"), (served, None), (served, "mine")):
        assert len(search(url, "dog", model=model, settings=settings)) == 12


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_query_without_a_direction_is_refused(bad: float) -> None:
    with pytest.raises(BadInput, match="no direction"):
        queries.unit_query(np.full(4, bad, np.float32))


# What is printed


def consoles(*, terminal: bool) -> tuple[Console, Console]:
    return tuple(Console(file=io.StringIO(), force_terminal=terminal, width=80) for _ in range(2))  # type: ignore[return-value]


def printed(console: Console) -> str:
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_lines_with_tabs_where_there_is_no_terminal(samples: Output, settings: Settings) -> None:
    out, told = consoles(terminal=False)
    asked: dict[str, Any] = {"image": None, "top": 2, "among": None, "model": None, "sheet": None}
    command(out, told, settings, samples.url, text="dog", **asked)
    lines = printed(out).splitlines()
    assert [line.split("\t")[0] for line in lines] == ["1", "2"]
    _, score, path, caption = lines[0].split("\t")
    assert (path, caption) == ("dog.png", "caption dog.png")
    assert 0 < float(score) <= 1
    assert "nothing of photographs" in printed(told)


def test_a_table_on_a_terminal_and_names_that_do_no_harm() -> None:
    hits = [Hit(1, 0.51234, 0, 0, "a\x1b[31m/[bold]\t.png", "line\none " + "long " * 80, {})]
    out, _ = consoles(terminal=True)
    show(out, hits)
    assert "0.5123" in printed(out)
    assert "\\x1b" in printed(out)
    assert "[bold]" in printed(out)
    assert "…" in printed(out)
    out, _ = consoles(terminal=False)
    show(out, hits)
    assert printed(out).count("\t") == 3
    assert printed(out).count("\n") == 1
    assert "\x1b" not in printed(out)
