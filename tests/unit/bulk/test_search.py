"""Searching an output: the same rows as numpy finds over all of it at once, from what is whole, for the right model."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from rich.console import Console

from bulk import query as queries
from bulk import stored
from bulk.layout import Options, Output, Plan
from bulk.search import Hit, Index, search
from bulk.source import Format, Source, SourceError
from cli.demo import load_samples
from cli.search import search as command
from cli.search import show
from shared.errors import BadInput, TextTooLong
from shared.models import CATALOGUE
from shared.settings import Settings
from shared.workers import ModelInfo
from tests.checkpoints import tiny_checkpoint
from tests.pictures import picture
from worker.clip import Clip
from worker.decode import decode

Matrix = NDArray[Any]

MODEL = ModelInfo("emoji-mini", "shipped:emoji-mini", "f" * 16, 24, 32, (64, 64), "fp32")


def make_output(
    url: str,
    images: Sequence[Matrix] = (),
    texts: Sequence[Matrix] = (),
    *,
    model: ModelInfo = MODEL,
    names: Sequence[str] | None = None,
    missing: Sequence[int] = (),
    row_group: int = 7,
) -> Output:
    """An output by hand: a shard for each matrix, its row k of shard n with the path ``n/k`` unless named."""
    output = Output(url)
    shards = images or texts
    source = Source("/pictures", Format.FOLDER, images=bool(images), texts=bool(texts), columns={"number": "int64"})
    plan = Plan("plan", source, model, Options(), len(shards), sum(map(len, shards)))
    number = 0
    for shard, matrix in enumerate(shards):
        files = output.names(shard, len(shards))
        paths = [names[number + row] if names else f"{shard}/{row}" for row in range(len(matrix))]
        table = pa.table(
            {
                "image_path": pa.array(paths, pa.string()),
                "caption": pa.array([f"caption {path}" for path in paths], pa.string()),
                "number": pa.array(range(number, number + len(matrix)), pa.int64()),
                "error": pa.array([None] * len(matrix), pa.string()),
            }
        )
        number += len(matrix)
        with output.aside(files["metadata"]) as path:
            pq.write_table(table, path, row_group_size=row_group)
        for kind, all_of in (("image", images), ("text", texts)):
            if all_of:
                with output.aside(files[kind]) as path:
                    np.save(path, all_of[shard])
        if shard not in missing:
            sizes = {name: {"bytes": output.size(name)} for name in files.values() if output.size(name)}
            marker = {"plan": plan.id, "shard": shard, "rows": len(matrix), "failed": 0, "files": sizes}
            output.write(files["shard"], orjson.dumps(marker))
    output.save(plan, {})
    return output


def cosines(matrix: Matrix, query: Matrix) -> Matrix:
    wide = matrix.astype(np.float64)
    return np.asarray(wide @ query / np.linalg.norm(wide, axis=1) / np.linalg.norm(query))


def places(hits: Sequence[Hit]) -> list[tuple[int, int]]:
    return [(hit.shard, hit.row) for hit in hits]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


# The nearest rows


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_nearest_are_those_of_numpy(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dtype: str, scale: float
) -> None:
    monkeypatch.setattr(stored, "BLOCK", 10 * MODEL.dimension)  # blocks of ten rows
    lengths = rng.uniform(0.1, scale, (93, 1))  # raw vectors: a dot product would find the longest
    shards = np.split((rng.standard_normal((93, MODEL.dimension)) * lengths).astype(dtype), [40, 41, 60])
    output = make_output(str(tmp_path), shards)
    query = rng.standard_normal(MODEL.dimension).astype(np.float32) * 9
    expected = cosines(np.concatenate(shards), query)
    order = np.argsort(-expected)
    for top in (1, 12, 93, 500):
        hits = Index(output.url).nearest(query, top)
        assert [hit.columns["number"] for hit in hits] == order[:top].tolist()
        assert [hit.rank for hit in hits] == list(range(1, min(top, 93) + 1))
        np.testing.assert_allclose([hit.score for hit in hits], expected[order[:top]], atol=1e-6)


def test_equal_rows_come_in_the_outputs_order(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "BLOCK", 4 * MODEL.dimension)
    few = rng.standard_normal((3, MODEL.dimension)).astype(np.float16)
    which = rng.integers(0, 3, 50)
    shards = np.split(few[which], [11, 37])
    query = few[1].astype(np.float32)
    hits = Index(make_output(str(tmp_path), shards).url).nearest(query, 40)
    order = np.argsort(-cosines(few, query)[which], kind="stable")[:40]
    assert [hit.columns["number"] for hit in hits] == order.tolist()


def test_rows_without_a_direction_never_come_up(tmp_path: Path, rng: np.random.Generator) -> None:
    matrix = -np.abs(rng.standard_normal((10, MODEL.dimension))).astype(np.float16)
    matrix[2] = 0
    matrix[4, 3] = np.nan
    matrix[5, 0] = np.inf
    matrix[6, :2] = -np.inf
    hits = Index(make_output(str(tmp_path), texts=[matrix]).url).nearest(np.ones(MODEL.dimension, np.float32), 10)
    assert {hit.row for hit in hits} == {0, 1, 3, 7, 8, 9}
    assert all(hit.score < 0 for hit in hits)


def test_a_shard_may_be_empty(tmp_path: Path, rng: np.random.Generator) -> None:
    shards = [np.zeros((0, MODEL.dimension), np.float16), rng.standard_normal((2, MODEL.dimension)).astype(np.float16)]
    index = Index(make_output(str(tmp_path), shards).url)
    assert (index.shards, index.rows) == (2, 2)
    assert {hit.shard for hit in index.nearest(np.ones(MODEL.dimension, np.float32), 5)} == {1}


def test_a_hit_is_its_row(tmp_path: Path, rng: np.random.Generator) -> None:
    shards = [rng.standard_normal((20, MODEL.dimension)).astype(np.float32) for _ in range(2)]
    index = Index(make_output(str(tmp_path), shards).url)
    hit = index.nearest(shards[1][17], 1)[0]
    assert hit == Hit(1, hit.score, 1, 17, "1/17", "caption 1/17", {"number": 37})
    assert hit.score == pytest.approx(1, abs=1e-6)


def test_only_the_row_groups_with_a_hit_are_read(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = rng.standard_normal((50, MODEL.dimension)).astype(np.float32)
    index = Index(make_output(str(tmp_path), [matrix], row_group=10).url)
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def spy(self: Any, number: int) -> Any:
        read.append(number)
        return whole(self, number)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    assert places(index.nearest(matrix[33], 1)) == [(0, 33)]
    assert read == [3]


def test_memory_does_not_grow_with_the_output(tmp_path: Path, rng: np.random.Generator) -> None:
    matrix = rng.standard_normal((60_000, MODEL.dimension)).astype(np.float32)  # 5.8 MB
    index = Index(make_output(str(tmp_path), [matrix], row_group=1000).url)
    index.nearest(matrix[0], 1)
    tracemalloc.start()
    index.nearest(matrix[1], 12)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 * 2**20


def test_an_output_elsewhere(rng: np.random.Generator) -> None:
    fsspec.filesystem("memory").store.clear()
    shards = [rng.standard_normal((9, MODEL.dimension)).astype(np.float16) for _ in range(3)]
    index = Index(make_output("memory://bucket/out", shards).url)
    assert places(index.nearest(shards[2][4].astype(np.float32), 1)) == [(2, 4)]


# What is searched


def test_images_are_searched_unless_texts_are_asked_for(tmp_path: Path) -> None:
    one, other = np.eye(MODEL.dimension, dtype=np.float32), np.eye(MODEL.dimension, dtype=np.float32)[::-1].copy()
    url = make_output(str(tmp_path), [one], [other]).url
    assert Index(url).nearest(one[0], 1)[0].row == 0
    assert Index(url, "images").nearest(one[0], 1)[0].row == 0
    assert Index(url, "texts").nearest(one[0], 1)[0].row == MODEL.dimension - 1
    with pytest.raises(BadInput, match="choose images or texts"):
        Index(url, "sounds")


def test_an_output_of_texts_alone(tmp_path: Path) -> None:
    url = make_output(str(tmp_path), texts=[np.eye(MODEL.dimension, dtype=np.float16)]).url
    assert Index(url).among == "texts"
    with pytest.raises(BadInput, match="no vectors of images: search its texts"):
        Index(url, "images")


def test_an_unfinished_output_is_searched_as_far_as_it_is(tmp_path: Path, rng: np.random.Generator) -> None:
    shards = [rng.standard_normal((5, MODEL.dimension)).astype(np.float32) for _ in range(12)]
    index = Index(make_output(str(tmp_path), shards, missing=[0, 10]).url)
    assert (index.shards, index.plan.shards, index.rows) == (10, 12, 50)
    hits = index.nearest(shards[10][0], 60)
    assert len(hits) == 50
    assert {hit.shard for hit in hits} == set(range(12)) - {0, 10}


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        search(str(tmp_path / "nowhere"), "dog")
    (tmp_path / "manifest.json").write_text('{"version": 99}')
    with pytest.raises(SourceError, match="cannot be understood"):
        search(str(tmp_path), "dog")
    eye = np.eye(MODEL.dimension, dtype=np.float32)
    with pytest.raises(BadInput, match=r"none of the 1 shards .* is finished yet"):
        search(make_output(str(tmp_path), [eye], missing=[0]).url, "dog")


@pytest.mark.parametrize("what", ["garbage", "shape", "kind", "short"])
def test_a_broken_file_is_named(tmp_path: Path, what: str) -> None:
    eye = np.eye(MODEL.dimension, dtype=np.float32)
    index = Index(make_output(str(tmp_path), [eye]).url)
    file = tmp_path / "img_emb" / "img_emb_0.npy"
    if what == "garbage":
        file.write_bytes(b"garbage")
    elif what == "short":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        np.save(file, eye[:, :5] if what == "shape" else np.full(eye.shape, "x"))
    with pytest.raises(BadInput, match=r"img_emb/img_emb_0\.npy is"):
        index.nearest(eye[0], 1)


def test_broken_metadata_is_named(tmp_path: Path) -> None:
    eye = np.eye(MODEL.dimension, dtype=np.float32)
    index = Index(make_output(str(tmp_path), [eye]).url)
    file = tmp_path / "metadata" / "metadata_0.parquet"
    pq.write_table(pq.read_table(file).slice(0, 3), file)
    assert index.nearest(eye[2], 1)[0].image_path == "0/2"
    with pytest.raises(BadInput, match=r"metadata_0\.parquet has no row 3"):
        index.nearest(eye[3], 1)
    file.write_bytes(b"garbage")
    with pytest.raises(BadInput, match=r"metadata_0\.parquet is broken"):
        index.nearest(eye[3], 1)


def test_a_shard_of_failures_alone_has_no_vectors_and_is_passed_over(tmp_path: Path) -> None:
    vectors = np.eye(3, 24, dtype=np.float16)
    output = make_output(str(tmp_path), [vectors, vectors, vectors])
    for kind in ("image", "metadata"):
        output.remove(output.names(1, 3)[kind])
    marker = orjson.loads(output.read(output.names(1, 3)["shard"]) or b"")
    output.write(output.names(1, 3)["shard"], orjson.dumps({**marker, "rows": 0, "failed": 3, "files": {}}))
    hits = Index(str(tmp_path)).nearest(vectors[0].astype(np.float32), 4)
    assert [(hit.shard, hit.row) for hit in hits[:2]] == [(0, 0), (2, 0)]


# The query


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(models=["emoji-mini"], device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def clip(settings: Settings) -> Clip:
    return Clip(CATALOGUE["emoji-mini"], settings)


@pytest.fixture(scope="module")
def samples(clip: Clip, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """The sample pictures and their names, embedded directly; raw vectors, in one shard."""
    found = load_samples()
    limits = {"max_bytes": settings.max_image_bytes, "max_pixels": settings.max_image_pixels}
    images = clip.embed_images([decode(s.png, clip.crop, **limits) for s in found]).result().astype(np.float16)
    texts = clip.embed_texts([clip.tokenizer(s.name) for s in found]).result().astype(np.float16)
    url = str(tmp_path_factory.mktemp("samples"))
    return make_output(url, [images], [texts], model=clip.info, names=[f"{s.name}.png" for s in found])


def test_each_name_finds_its_picture(samples: Output, clip: Clip, settings: Settings) -> None:
    index = Index(samples.url)
    found = [index.nearest(clip.embed_texts([clip.tokenizer(s.name)]).result()[0], 1)[0] for s in load_samples()]
    right = [hit.image_path == f"{sample.name}.png" for hit, sample in zip(found, load_samples(), strict=True)]
    assert all(right)
    hits = search(samples.url, "dog", top=3, settings=settings)
    assert (len(hits), hits[0].image_path) == (3, "dog.png")


def test_a_query_is_prepared_as_the_vectors_were_whatever_is_set_here(settings: Settings) -> None:
    there = settings.model_copy(update={"precision": "bf16", "resize": "fast", "jpeg_draft": 2.0})
    clip = Clip(CATALOGUE["emoji-mini"], there)
    jpeg = picture(7, size=(640, 480), format="JPEG")
    limits = {"max_bytes": settings.max_image_bytes, "max_pixels": settings.max_image_pixels, "draft": clip.draft}
    expected = clip.embed_images([decode(jpeg, clip.crop, **limits)]).result()[0]
    found = queries.embed(clip.info, None, jpeg, None, settings)
    np.testing.assert_array_equal(found, queries.unit(expected))


def test_a_picture_finds_itself_and_its_name(samples: Output, settings: Settings) -> None:
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
    assert Clip(CATALOGUE["emoji-mini"], settings).fingerprint in told.value.message


def test_exactly_one_query(samples: Output, settings: Settings) -> None:
    with pytest.raises(BadInput, match="exactly one"):
        search(samples.url, settings=settings)
    with pytest.raises(BadInput, match="exactly one"):
        search(samples.url, "dog", image=picture(), settings=settings)


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
    info = Clip(queries.parse_model(served.models[0]), served).info
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
        queries.unit(np.full(4, bad, np.float32))


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
