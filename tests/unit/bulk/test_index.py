"""Searching an output: the same rows as numpy finds over all of it at once, from what is whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from clip_queue.bulk.search.index import Hit, Index, search
from clip_queue.shared.errors import BadInput
from clip_queue.sources.source import SourceError
from tests.unit.bulk.outputs_by_hand import MODEL, cosines, make_output, places


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


# The nearest rows


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_nearest_are_those_of_numpy(tmp_path: Path, rng: np.random.Generator, dtype: str, scale: float) -> None:
    lengths = rng.uniform(0.1, scale, (93, 1))  # raw vectors: a dot product would find the longest
    shards = np.split((rng.standard_normal((93, MODEL.dimension)) * lengths).astype(dtype), [40, 41, 60])
    output = make_output(str(tmp_path), shards)
    query = rng.standard_normal(MODEL.dimension).astype(np.float32) * 9
    expected = cosines(np.concatenate(shards), query)
    order = np.argsort(-expected)
    for top in (1, 12, 93, 500):
        hits = Index(output.url, block_numbers=10 * MODEL.dimension).nearest(query, top)
        assert [hit.columns["number"] for hit in hits] == order[:top].tolist()
        assert [hit.rank for hit in hits] == list(range(1, min(top, 93) + 1))
        np.testing.assert_allclose([hit.score for hit in hits], expected[order[:top]], atol=1e-6)


def test_equal_rows_come_in_the_outputs_order(tmp_path: Path, rng: np.random.Generator) -> None:
    few = rng.standard_normal((3, MODEL.dimension)).astype(np.float16)
    which = rng.integers(0, 3, 50)
    shards = np.split(few[which], [11, 37])
    query = few[1].astype(np.float32)
    output = make_output(str(tmp_path), shards)
    hits = Index(output.url, block_numbers=4 * MODEL.dimension).nearest(query, 40)
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
        Path(output.path(output.names(1, 3)[kind])).unlink()
    marker = orjson.loads(output.read(output.names(1, 3)["shard"]) or b"")
    output.write(output.names(1, 3)["shard"], orjson.dumps({**marker, "rows": 0, "failed": 3, "files": {}}))
    hits = Index(str(tmp_path)).nearest(vectors[0].astype(np.float32), 4)
    assert [(hit.shard, hit.row) for hit in hits[:2]] == [(0, 0), (2, 0)]
