"""The layout ``table``: one parquet file a shard, what stands in it, and that everything else works as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.bulk.output import manifest, table_layout
from clip_queue.bulk.output import writer as writing
from clip_queue.bulk.output.errors import AnotherRun
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.markers import marker_if_complete
from clip_queue.bulk.output.stored_shards import StoredShards
from clip_queue.bulk.output.writer import ShardWriter
from clip_queue.bulk.run.embed import ignore, run_plan
from clip_queue.bulk.run.planner import Planner
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.resume import check_same
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.search.index import Index
from clip_queue.shared.errors import BadImage, BadInput
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import Row, Source, SourceError
from tests.unit.bulk.in_process import INFO, Worker

MODEL = ModelInfo("m", "none", "f", 3, 8, (4, 4), "fp32")
SETTINGS = Settings(models=["emoji-mini"])


def plan(*, images: bool = True, texts: bool = True, **options: Any) -> RunPlan:
    source = Source(
        "s", "csv", images=images, texts=texts, columns={"id": "int64", "source_id": "string", "n": "int64"}
    )
    return RunPlan("p", source, MODEL, PlanOptions(**{"layout": "table", **options}), 12, None)


def row(i: int) -> Row:
    return Row({"image_path": f"{i}.jpg", "caption": None if i % 2 else "é", "id": 7 * i, "source_id": "own", "n": i})


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)


def write(output: Output, the_plan: RunPlan, shard: int, good: int, bad: int = 0, batch: int = 4) -> dict[str, Any]:
    kinds = {k: vectors(good, seed) for seed, k in enumerate(table_layout.vector_columns(the_plan.source))}
    with ShardWriter(output, the_plan, shard) as writer:
        for start in range(0, good, batch):
            some = slice(start, start + batch)
            writer.write([row(i) for i in range(good)[some]], {kind: matrix[some] for kind, matrix in kinds.items()})
        for i in range(bad):
            writer.fail(row(100 + i), BadImage(f"broken {i}"))
        return writer.finish({"all": 1.0})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("url", ["local", "memory://bulk-table"])
def test_a_shard_is_one_file_with_ids_vectors_and_metadata(tmp_path: Path, url: str, dtype: str) -> None:
    output = Output(str(tmp_path / "out") if url == "local" else f"{url}-{dtype}")
    the_plan = plan(dtype=dtype, normalize=False)
    marker = write(output, the_plan, 3, good=10, bad=2)
    assert sorted(marker["files"]) == ["errors/errors_03.parquet", "table/table_03.parquet"]
    assert marker_if_complete(output, the_plan, 3) == orjson.loads(orjson.dumps(marker))
    raw = output.read("table/table_03.parquet")
    assert raw
    table = pq.read_table(pa.BufferReader(raw))
    own = ["image_path", "caption", "source_id", "source_source_id", "n", "error"]
    assert table.column_names == ["id", "image_vector", "text_vector", *own], "the source's own id is kept beside ours"
    assert table.schema.field("image_vector").type == pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), 3)
    assert table.column("id").to_pylist() == [3_000_000_000 + i for i in range(10)]
    assert table.column("source_id").to_pylist() == [7 * i for i in range(10)]
    stored = np.array(table.column("text_vector").to_pylist(), np.float32)
    np.testing.assert_array_equal(stored, vectors(10, 1).astype(dtype).astype(np.float32))
    errors = pq.read_table(pa.BufferReader(output.read("errors/errors_03.parquet")))
    assert errors.column("error").to_pylist() == ["broken 0", "broken 1"]
    assert "id" in errors.column_names


@pytest.mark.parametrize(("images", "texts"), [(True, False), (False, True)])
def test_with_one_kind_of_vectors_their_column_is_vector(tmp_path: Path, images: bool, texts: bool) -> None:
    output = Output(str(tmp_path))
    the_plan = plan(images=images, texts=texts)
    write(output, the_plan, 0, good=3)
    assert pq.read_schema(tmp_path / "table/table_00.parquet").names[:3] == ["id", "vector", "image_path"]
    stored = StoredShards(output, the_plan, "image" if images else "text")
    np.testing.assert_allclose(np.linalg.norm(stored.vectors(0, [2, 0]), axis=1), 1, atol=1e-3)


def test_the_same_rows_make_the_same_bytes_however_they_came(tmp_path: Path) -> None:
    made = []
    for name, batch in (("a", 4), ("b", 1000)):
        write(Output(str(tmp_path / name)), plan(), 0, good=3 * writing.ROW_GROUP // 2, batch=batch)
        made.append((tmp_path / name / "table/table_00.parquet").read_bytes())
    assert made[0] == made[1]
    assert pq.ParquetFile(tmp_path / "a/table/table_00.parquet").num_row_groups == 2


def test_a_shard_of_failures_alone_has_no_table(tmp_path: Path) -> None:
    assert sorted(write(Output(str(tmp_path)), plan(), 0, good=0, bad=1)["files"]) == ["errors/errors_00.parquet"]


def test_rows_are_read_back_by_number_and_in_blocks(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    count = writing.ROW_GROUP + 5
    write(output, plan(), 1, good=count)
    stored = StoredShards(output, plan(), "image")
    expected = vectors(count) / np.linalg.norm(vectors(count), axis=1, keepdims=True)
    blocks = [(start, block.copy()) for start, block in stored.blocks(1, numbers=3000)]
    assert [start for start, _ in blocks][:3] == [0, 1000, 2000]
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), expected, atol=1e-3)
    np.testing.assert_allclose(stored.vectors(1, [count - 1, 2]), expected[[2, count - 1]], atol=1e-3)
    found = stored.metadata(1, [count - 1, 2])
    assert found[2] == {"image_path": "2.jpg", "caption": "é", "id": 14, "source_id": "own", "n": 2, "error": None}
    assert found[count - 1]["n"] == count - 1
    with pytest.raises(BadInput, match=r"table_01.parquet has no row 9999, though"):
        stored.metadata(1, [9999])
    (tmp_path / "table/table_01.parquet").write_bytes(b"PAR1")
    for read in (lambda: list(stored.blocks(1)), lambda: stored.metadata(1, [0]), lambda: stored.vectors(1, [0])):
        with pytest.raises(BadInput, match=r"table_01.parquet is broken"):
            read()


def test_a_table_of_other_vectors_is_named(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    write(output, plan(texts=False), 0, good=2)
    with pytest.raises(BadInput, match=r"table/table_00.parquet has no column 'image_vector' of 3 floats"):
        list(StoredShards(output, plan(), "image").blocks(0))


def test_names_and_ids_go_both_ways() -> None:
    for name in ("id", "vector", "source_id", "source_source_vector", "caption", "source_file", "source_row"):
        assert table_layout.metadata_name(table_layout.column_name(name)) == name
    assert table_layout.metadata_name("id") is table_layout.metadata_name("text_vector") is None
    assert table_layout.place(table_layout.row_id(7, 123)) == (7, 123)


# The plan


def test_the_layout_is_the_plans_and_another_is_refused_by_name() -> None:
    the_plan = plan()
    asked = EmbedRequest(the_plan.source, {"layout": "clip-retrieval"}).plan_options(the_plan.options)
    with pytest.raises(AnotherRun, match="layout is 'table' there, 'clip-retrieval' here"):
        check_same(the_plan, the_plan.source, asked, "m")
    unsaid = EmbedRequest(the_plan.source, {}).plan_options(the_plan.options)
    check_same(the_plan, the_plan.source, unsaid, "m")


def test_releases_that_know_no_tables_refuse_one_and_read_everything_else(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    manifest.save(output, plan(layout="clip-retrieval"))
    raw = orjson.loads(output.read(manifest.MANIFEST) or b"")
    assert raw["version"] == 1
    assert set(raw["plan"]["options"]) == {"shard_size", "batch_size", "dtype", "normalize"}
    found = manifest.load(output)
    assert found is not None
    assert found.plan.options.layout == "clip-retrieval"
    manifest.save(output, plan())
    raw = orjson.loads(output.read(manifest.MANIFEST) or b"")
    assert raw["version"] == 2
    found = manifest.load(output)
    assert found is not None
    assert found.plan == plan()
    raw["plan"]["options"]["layout"] = "of a later release"
    output.write(manifest.MANIFEST, orjson.dumps(raw))
    with pytest.raises(SourceError, match="layout of a later release"):
        manifest.load(output)


# A whole run, and a search in it


def test_a_run_into_tables_is_resumed_reported_and_searched(tmp_path: Path, worker: Worker) -> None:
    (tmp_path / "in.txt").write_text("a\nbb\n\ndddd\neeeee\n")
    output = Output(str(tmp_path / "out"))
    given: Any = {"shard_size": 2, "batch_size": 2, "layout": "table"}
    planner = Planner(output, EmbedRequest.of(str(tmp_path / "in.txt"), given), SETTINGS, ignore, lambda: False)
    the_plan = planner.plan(planner.write_shards(), INFO, "cpu", shared_workers=True)
    manifest.save(output, the_plan)

    def run(worker: Any) -> Any:
        more: Any = {"retry": RetryPolicy(), "show": ignore, "should_stop": lambda: False}
        return run_plan(SETTINGS, output, the_plan, worker.store, **more)

    report = run(worker)
    assert (report.rows, report.failed, report.shards, report.complete) == (4, 1, 3, 3)
    before = {path: path.read_bytes() for path in (tmp_path / "out/table").iterdir()}
    (tmp_path / "out/shards/shard_1.json").unlink()
    again = Worker(worker.engine)
    assert run(again).resumed == 3
    assert len(again.sent) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "out/table").iterdir()} == before
    hits = Index(output.url).nearest(np.ones(INFO.dimension, np.float32), 9)
    assert [hit.caption for hit in hits] == ["a", "bb", "dddd", "eeeee"]
