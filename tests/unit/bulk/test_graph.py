"""A graph of vectors: every row can be found, whatever several threads did while they were added."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clip_queue.bulk.search.graph import Graph, GraphBuilder
from clip_queue.shared.vectors import Matrix

pytest.importorskip("usearch")
D = 64


def rows(count: int) -> Matrix:
    return np.random.default_rng(3).standard_normal((count, D)).astype(np.float32)


def built(vectors: Matrix) -> GraphBuilder:
    graph = GraphBuilder(D)
    graph.add(np.arange(len(vectors), dtype=np.uint64), vectors)
    return graph


def found(graph: GraphBuilder, folder: Path, query: Matrix, count: int) -> set[int]:
    graph.save(folder / "graph")
    np.save(folder / "twins.npy", graph.twins)
    return set(Graph(folder / "graph", folder / "twins.npy").nearest(query, count))


def test_every_row_is_reached_once_all_were_looked_up(tmp_path: Path) -> None:
    vectors = rows(3000)
    for _ in range(5):  # without looking up, four builds of five lose some
        graph = built(vectors)
        looked_up: list[int] = []
        graph.look_up(looked_up.append)
        assert sum(looked_up) == len(vectors)
        assert found(graph, tmp_path, vectors[0], len(vectors)) == set(range(len(vectors)))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_graphs_of_few_rows(tmp_path: Path, count: int) -> None:
    graph = built(rows(count))
    assert graph.look_up(lambda _: None) == 0
    assert found(graph, tmp_path, rows(1)[0], 5) == set(range(count))


def test_of_equal_rows_the_first_is_in_the_graph_and_each_brings_so_many_twins_as_are_wanted(tmp_path: Path) -> None:
    vectors = rows(900)
    vectors[100:400] = vectors[100]
    vectors[500:503] = vectors[500]
    graph = built(vectors)
    assert graph.look_up(lambda _: None) <= 20
    assert graph.twins.tolist() == [[100, row] for row in range(101, 400)] + [[500, 501], [500, 502]]
    assert found(graph, tmp_path, vectors[0], 900) == set(range(900))
    assert {row for row in found(graph, tmp_path, vectors[100], 10) if 100 <= row < 400} == set(range(100, 111))


def test_a_search_looks_at_about_as_many_twins_as_rows_are_wanted(tmp_path: Path) -> None:
    vectors = np.repeat(rows(60), 50, axis=0)
    graph = built(vectors)
    graph.look_up(lambda _: None)
    assert len(graph.twins) == 60 * 49
    for count in (1, 40, 60):
        got = found(graph, tmp_path, vectors[0], count)
        nearest = np.argsort(-(vectors[::50] @ vectors[0] / np.linalg.norm(vectors[::50], axis=1)))
        assert 2 * count <= len(got) <= 2 * count + 50
        assert set(range(1, min(count, 49) + 1)) <= got, "those of the nearest row"
        assert {50 * int(row) for row in nearest[:count]} <= got, "and each row that the graph holds"


def test_twins_are_equal_as_the_graph_holds_them(tmp_path: Path) -> None:
    vectors = rows(300)
    vectors[100:200] = vectors[100] * (1 + 1e-6 * np.arange(100)[:, None])
    graph = built(vectors)
    graph.look_up(lambda _: None)
    assert len(graph.twins) > 50
    assert found(graph, tmp_path, vectors[0], 300) == set(range(300))


def test_an_empty_file_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "graph").write_bytes(b"")
    with pytest.raises((ValueError, RuntimeError)):
        Graph(tmp_path / "graph", None)
