"""Searching only the rows that a condition on their metadata leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from clip_queue.bulk.search.index import Index, search
from clip_queue.shared.errors import BadInput
from tests.unit.bulk.outputs_by_hand import MODEL, make_output

QUERY = np.ones(MODEL.dimension, np.float32)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Two shards of 10 rows; ``number`` counts through, ``caption`` is ``caption SHARD/ROW``."""
    pytest.importorskip("duckdb")
    matrix = np.random.default_rng(3).standard_normal((20, MODEL.dimension)).astype(np.float16)
    return make_output(str(tmp_path / "out"), np.split(matrix, 2)).url


@pytest.mark.parametrize(
    ("condition", "numbers"),
    [
        ("caption LIKE '%/3'", {3, 13}),
        ("number BETWEEN 8 AND 11 AND NOT caption = 'caption 1/0'", {8, 9, 11}),
        ("error IS NOT NULL", set()),
        ("error = 'x' OR number = 5", {5}),  # null counts as false
        ("number % 10 = 7 -- a comment", {7, 17}),
        ("number > 17", {18, 19}),
    ],
)
def test_only_rows_that_meet_it_are_found(url: str, condition: str, numbers: set[int]) -> None:
    hits = Index(url, filter=condition).nearest(QUERY, 20)
    assert {hit.columns["number"] for hit in hits} == numbers
    everything = [hit for hit in Index(url).nearest(QUERY, 20) if hit.columns["number"] in numbers]
    assert [hit.score for hit in hits] == [hit.score for hit in everything], "in the same order"


@pytest.mark.parametrize(
    "condition",
    [
        "",
        "caption LIKE",
        "nothing = 1",
        "caption = 1.5",
        "number), (number",
        "count(*) > 1",
        "1; DROP TABLE x",
        "row_number() OVER (ORDER BY number) < 3",
    ],
)
def test_what_is_no_condition_is_refused_with_the_reason(url: str, condition: str) -> None:
    with pytest.raises(BadInput, match="the filter "):
        Index(url, filter=condition)


def test_a_filter_reads_no_files(url: str, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(BadInput, match="the filter "):
        Index(url, filter=f"number IN (SELECT a FROM read_csv('{tmp_path}/secret.csv'))")
    with pytest.raises(BadInput, match="the filter "):
        Index(url, filter=f"number IN (SELECT a FROM '{tmp_path}/secret.csv')")


def test_without_duckdb_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    output = make_output(str(tmp_path), [np.ones((1, MODEL.dimension), np.float16)])
    with pytest.raises(BadInput, match=r"a filter needs DuckDB: pip install 'clip-queue\[search\]'"):
        search(output.url, "x", filter="true")


def test_near_duplicates_are_filtered_too(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    url = make_output(str(tmp_path), [np.ones((6, MODEL.dimension), np.float16)]).url
    assert [hit.row for hit in search(url, near_duplicates=0.9, filter="number > 2")] == [3, 4, 5]


def test_over_in_a_text_is_no_window(url: str) -> None:
    assert Index(url, filter="caption <> 'it''s over (now)' AND \"caption\" IS NOT NULL")
