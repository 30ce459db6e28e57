"""Near duplicates: the groups that comparing every pair at once gives, found block by block."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from clip_queue.bulk.search.index import Index, search
from clip_queue.bulk.search.near_duplicates import NearDuplicates
from clip_queue.shared.errors import BadInput
from tests.unit.bulk.outputs_by_hand import MODEL, make_output

D = MODEL.dimension


def ignore(_: float) -> None: ...


def groups_of(matrix: np.ndarray, threshold: float) -> list[list[int]]:
    """The groups of more than one row, by following every pair."""
    unit = matrix.astype(np.float64) / np.maximum(
        np.linalg.norm(matrix.astype(np.float64), axis=1, keepdims=True), 1e-12
    )
    near, seen, found = unit @ unit.T >= threshold, set(), []
    for first in range(len(matrix)):
        group, waiting = set(), [first]
        while waiting:
            row = waiting.pop()
            if row not in seen:
                seen.add(row)
                group.add(row)
                waiting += np.flatnonzero(near[row]).tolist()
        if len(group) > 1:
            found.append(sorted(group))
    return found


@pytest.mark.parametrize(("outer", "inner"), [(8192, 1024), (7, 3), (3, 7), (1, 1)])
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.97])
def test_the_groups_are_those_of_every_pair(tmp_path: Path, outer: int, inner: int, threshold: float) -> None:
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((12, D))
    matrix = centres[rng.integers(0, 12, 60)] + rng.uniform(0.01, 0.7, (60, 1)) * rng.standard_normal((60, D))
    matrix = (matrix * rng.uniform(0.5, 3, (60, 1))).astype(np.float32)
    matrix[[5, 17]] = 0  # no direction: like nothing, not even each other
    shards = [matrix[:20], matrix[20:21], matrix[21:]]
    index = Index(make_output(str(tmp_path), shards).url)
    found = NearDuplicates(index.stored, {n: len(shard) for n, shard in enumerate(shards)}, outer=outer, inner=inner)
    shares: list[float] = []
    rows, firsts = found.groups(threshold, shares.append)
    got: dict[int, list[int]] = {}
    for row, first in zip(rows.tolist(), firsts.tolist(), strict=True):
        got.setdefault(first, []).append(row)
    assert list(got.values()) == groups_of(matrix, threshold)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_hits_are_group_by_group_with_metadata_and_vectors(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((8, D)).astype(np.float16)
    matrix[6], matrix[3], matrix[7] = matrix[1], matrix[2], matrix[1]
    url = make_output(str(tmp_path), [matrix[:4], matrix[4:]]).url
    hits = search(url, near_duplicates=1.0, vectors=True)
    assert [(hit.rank, hit.shard, hit.row) for hit in hits] == [(1, 0, 1), (1, 1, 2), (1, 1, 3), (2, 0, 2), (2, 0, 3)]
    assert [hit.image_path for hit in hits] == ["0/1", "1/2", "1/3", "0/2", "0/3"]
    np.testing.assert_allclose([hit.score for hit in hits], 1, atol=1e-5)
    for hit in hits:
        assert hit.vector is not None
        np.testing.assert_array_equal(hit.vector, matrix[hit.shard * 4 + hit.row].astype(np.float32))
    assert search(url, near_duplicates=1.0, among="images")[0] == hits[0]


def test_none_is_an_empty_list_and_all_alike_are_one_group(tmp_path: Path) -> None:
    assert search(make_output(str(tmp_path / "a"), [np.eye(D, dtype=np.float16)]).url, near_duplicates=0.5) == []
    hits = search(make_output(str(tmp_path / "b"), [np.ones((300, D), np.float16)]).url, near_duplicates=0.99)
    assert [(hit.rank, hit.row) for hit in hits] == [(1, row) for row in range(300)]


def test_a_threshold_that_is_none_and_a_query_beside_it_are_refused(tmp_path: Path) -> None:
    url = make_output(str(tmp_path), [np.eye(D, dtype=np.float16)]).url
    for threshold in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(BadInput, match="above 0, and at most 1"):
            search(url, near_duplicates=threshold)
    with pytest.raises(BadInput, match="without a text or an image"):
        search(url, "a cat", near_duplicates=0.9)


def test_memory_does_not_grow_with_the_pairs(tmp_path: Path) -> None:
    matrix = np.ones((3000, D), np.float16)  # 4.5 million pairs
    index = Index(make_output(str(tmp_path), [matrix], row_group=1000).url)
    found = NearDuplicates(index.stored, {0: 3000}, outer=256, inner=256)
    tracemalloc.start()
    assert len(found.groups(0.9, ignore)[0]) == 3000
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 6 * 2**20
