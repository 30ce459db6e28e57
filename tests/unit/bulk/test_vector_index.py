"""The index of an output: what it finds against comparing every row, and that one that is behind costs no row."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.search.index import Index
from clip_queue.shared.errors import BadInput
from tests.unit.bulk.outputs_by_hand import MODEL, make_output, places

D = MODEL.dimension
SHARDS, ROWS = 4, 300


def ignore(_: float) -> None: ...


def shards(count: int = SHARDS) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    matrices = [rng.standard_normal((ROWS, D)).astype(np.float16) for _ in range(count)]
    matrices[1][7] = 0  # no direction
    matrices[2][5, 0] = np.nan
    return matrices


def opened(url: str, **options: object) -> Index:
    return Index(url, exact_below=1, **options)  # type: ignore[arg-type]


@pytest.fixture
def url(tmp_path: Path) -> str:
    pytest.importorskip("usearch")
    return make_output(str(tmp_path / "out"), shards()).url


def recall(index: Index, top: int = 10) -> float:
    """The share of the nearest rows that the index finds, over some queries."""
    queries = np.random.default_rng(4).standard_normal((30, D)).astype(np.float32)
    found = [(set(places(index.nearest(q, top))), set(places(index.nearest(q, top, exact=True)))) for q in queries]
    return sum(len(got & right) for got, right in found) / sum(len(right) for _, right in found)


def test_it_finds_what_comparing_every_row_finds(url: str) -> None:
    assert not opened(url).uses_index
    shares: list[float] = []
    assert opened(url).build_index(shares.append) == SHARDS * ROWS
    assert shares[-1] == 1.0
    index = opened(url)
    assert index.uses_index
    assert index.notice == ""
    assert recall(index) >= 0.99
    query = np.random.default_rng(1).standard_normal(D).astype(np.float32)
    assert index.nearest(query, 1) == index.nearest(query, 1, exact=True), "score and metadata are exact"


def test_it_is_read_from_the_index(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(url).build_index(ignore)
    index = opened(url)
    monkeypatch.setattr(index.stored, "blocks", lambda *_: pytest.fail("all rows are compared"))
    assert len(index.nearest(np.ones(D, np.float32), 5)) == 5


def test_it_is_built_in_parts_and_not_twice(url: str) -> None:
    assert opened(url).vector_index.build(ignore, part_rows=2 * ROWS) == SHARDS * ROWS
    index = opened(url)
    assert [part.rows for part in index.vector_index.parts] == [2 * ROWS, 2 * ROWS]
    assert recall(index) >= 0.99
    assert opened(url).build_index(ignore) == 0
    assert len(list((Path(url) / "index").iterdir())) == 3


def test_an_output_that_grows_is_noticed_and_loses_no_row(url: str) -> None:
    marker = Path(url) / Output.names(3, SHARDS)["shard"]
    later = marker.rename(marker.with_suffix(".later"))
    assert opened(url).build_index(ignore) == 3 * ROWS
    later.rename(marker)
    index = opened(url)
    assert index.notice.startswith("the index is behind: 1 of 4 shards are compared row by row")
    hit = index.nearest(shards()[3][11].astype(np.float32), 1)[0]
    assert (hit.shard, hit.row) == (3, 11)
    assert index.build_index(ignore) == ROWS
    assert opened(url).notice == ""


def test_a_shard_that_is_another_now_is_not_found_by_the_old_part(url: str) -> None:
    opened(url).build_index(ignore)
    output = Output(url)
    name = output.names(0, SHARDS)["shard"]
    marker = orjson.loads(output.read(name) or b"")
    marker["files"][output.names(0, SHARDS)["image"]]["blake2b"] = "another"
    output.write(name, orjson.dumps(marker))
    index = opened(url)
    assert not index.uses_index
    assert "4 of 4 shards" in index.notice
    assert index.build_index(ignore) == SHARDS * ROWS
    assert len(list((Path(url) / "index").iterdir())) == 2, "the old part is gone"


@pytest.mark.parametrize("damage", ["about", "part", "no part"])
def test_an_index_that_is_damaged_is_as_none(url: str, damage: str) -> None:
    opened(url).build_index(ignore)
    part = next((Path(url) / "index").glob("*.usearch"))
    if damage == "about":
        (Path(url) / "index/images.json").write_bytes(b"[1")
    elif damage == "part":
        part.write_bytes(part.read_bytes()[:-1])
    else:
        part.unlink()
    index = opened(url)
    assert not index.uses_index
    assert len(index.nearest(np.ones(D, np.float32), 5)) == 5
    assert index.build_index(ignore) == SHARDS * ROWS
    assert opened(url).uses_index


def test_few_rows_filters_and_many_hits_are_compared_one_by_one(url: str) -> None:
    opened(url).build_index(ignore)
    assert not Index(url).uses_index
    with pytest.raises(BadInput, match=r"1,200 rows are compared in no time: from 100,000 on an index helps"):
        Index(url).build_index(ignore)
    everything = opened(url).nearest(np.ones(D, np.float32), 1001)
    assert everything == opened(url).nearest(np.ones(D, np.float32), 1001, exact=True)
    pytest.importorskip("duckdb")
    assert not opened(url, filter="number > 3").uses_index


def test_an_output_elsewhere_has_no_index() -> None:
    index = opened(make_output("memory://bucket/indexed", shards(3)).url)
    with pytest.raises(BadInput, match="is not on this machine"):
        index.build_index(ignore)


def test_without_usearch_it_says_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(url).build_index(ignore)
    monkeypatch.setitem(sys.modules, "usearch", None)
    index = opened(url)
    assert index.notice.startswith("there is an index, and no usearch to read it")
    assert len(index.nearest(np.ones(D, np.float32), 5)) == 5
    with pytest.raises(BadInput, match="an index needs usearch: pip install"):
        index.build_index(ignore)


def test_rows_that_are_equal_are_all_found_and_so_are_their_neighbours(tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    matrices = shards()
    blank = matrices[0][100].copy()
    for matrix in matrices:
        matrix[100:180] = blank
    url = make_output(str(tmp_path / "out"), matrices).url
    assert opened(url).build_index(ignore) == SHARDS * ROWS
    index = opened(url)
    wanted = [(shard, row) for shard in range(SHARDS) for row in range(100, 180)]
    for top in (10, 400):
        by_index, exact = (index.nearest(blank.astype(np.float32), top, exact=exact) for exact in (False, True))
        assert places(by_index)[: len(wanted)] == places(exact)[: len(wanted)] == wanted[:top]
    assert recall(index) >= 0.99
    assert opened(url).build_index(ignore) == 0, "the file of the twins is the index's own"


def test_twins_that_are_gone_make_a_part_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    url = make_output(str(tmp_path / "out"), [np.ones((ROWS, D), np.float16)]).url
    opened(url).build_index(ignore)
    twins = next((Path(url) / "index").glob("*.twins.npy"))
    twins.unlink()
    assert not opened(url).uses_index
    assert opened(url).build_index(ignore) == ROWS
    assert len(opened(url).nearest(np.ones(D, np.float32), ROWS)) == ROWS


def test_an_index_whose_rows_have_no_direction(tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    url = make_output(str(tmp_path / "out"), [np.zeros((ROWS, D), np.float16)]).url
    assert opened(url).build_index(ignore) == ROWS
    assert opened(url).nearest(np.ones(D, np.float32), 5) == []
