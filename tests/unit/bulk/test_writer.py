"""A shard's files: what numpy and pyarrow read back, whole or absent, and the same every time."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.bulk.output import writer as module
from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.markers import complete_markers, marker_if_complete
from clip_queue.bulk.output.plan_file import PlanFile, write_plan
from clip_queue.bulk.output.writer import NpyFile, ShardWriter
from clip_queue.bulk.run.report import Report
from clip_queue.shared.errors import BadImage, TextTooLong
from clip_queue.shared.models import ModelInfo
from clip_queue.sources.source import Piece, Row, Shard, Source, SourceError
from tests.outputs import checksums

INFO = ModelInfo("m", "none", "f", 3, 8, (4, 4), "fp32")


def plan(shards: int = 12, **options: Any) -> RunPlan:
    source = Source("s", "text", images=True, texts=True, columns={"stars": "int64", "odd": "list<int>"})
    return RunPlan("p", source, INFO, PlanOptions(**options), shards, None)


def row(i: int) -> Row:
    return Row({"image_path": f"{i}.jpg", "caption": None if i % 2 else "é", "stars": i, "odd": "[1]"})


def write(output: Output, the_plan: RunPlan, shard: int, good: int, bad: int = 0) -> dict[str, Any]:
    vectors = np.arange(3 * good, dtype=np.float32).reshape(good, 3) + 1
    with ShardWriter(output, the_plan, shard) as writer:
        for start in range(0, good, 4):
            some = slice(start, start + 4)
            rows = [row(i) for i in range(good)[some]]
            writer.write(rows, {"image": vectors[some], "text": np.zeros_like(vectors[some])})
        for i in range(bad):
            writer.fail(row(100 + i), BadImage(f"broken {i}"))
        return writer.finish({"all": 1.0})


def test_an_npy_file_that_grew_is_the_one_that_numpy_writes(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((37, 5)).astype(np.float32)
    for dtype in ("float16", "float32"):
        file = NpyFile(tmp_path / "grown.npy", 5, dtype)
        for start in range(0, 37, 10):
            file.append(matrix[start : start + 10])
        file.close()
        np.save(tmp_path / "saved.npy", matrix.astype(dtype))
        assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


@pytest.mark.parametrize("url", ["local", "memory://bulk-writer"])
def test_a_shard_is_read_back_and_its_marker_knows_its_files(tmp_path: Path, url: str) -> None:
    output = Output(str(tmp_path / "out") if url == "local" else url)
    the_plan = plan()
    marker = write(output, the_plan, 3, good=10, bad=5)
    assert (marker["rows"], marker["failed"]) == (10, 5)
    assert sorted(marker["files"]) == [
        "errors/errors_03.parquet",
        "img_emb/img_emb_03.npy",
        "metadata/metadata_03.parquet",
        "text_emb/text_emb_03.npy",
    ]
    assert marker["errors"]["bad_image"]["rows"] == 5
    assert len(marker["errors"]["bad_image"]["examples"]) == 3
    assert marker_if_complete(output, the_plan, 3) == orjson.loads(orjson.dumps(marker))
    assert [m["shard"] for m in complete_markers(output, the_plan)] == [3]
    raw = output.read("metadata/metadata_03.parquet")
    assert raw
    table = pq.read_table(pa.BufferReader(raw))
    assert table.column_names == ["image_path", "caption", "stars", "odd", "error"]
    assert table.column("stars").to_pylist() == list(range(10))
    errors = pq.read_table(pa.BufferReader(output.read("errors/errors_03.parquet")))
    assert errors.schema == table.schema
    assert errors.column("error").to_pylist() == [f"broken {i}" for i in range(5)]


def test_vectors_have_length_one_unless_raw_and_zeros_stay(tmp_path: Path) -> None:
    for normalize in (True, False):
        output = Output(str(tmp_path / str(normalize)))
        write(output, plan(normalize=normalize, dtype="float32"), 0, good=6)
        stored = np.load(tmp_path / str(normalize) / "img_emb/img_emb_00.npy")
        lengths = np.linalg.norm(stored, axis=1)
        assert np.allclose(lengths, 1) == normalize
        assert not np.load(tmp_path / str(normalize) / "text_emb/text_emb_00.npy").any()


def test_the_same_rows_make_the_same_bytes_however_they_came(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(Output(str(tmp_path / name)), plan(), 0, good=3 * module.ROW_GROUP // 2, bad=3)
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")


def test_a_row_with_a_fault_in_one_half_stands_in_the_metadata_with_the_reason(tmp_path: Path) -> None:
    output, the_plan = Output(str(tmp_path)), plan()
    part = row(0)
    part.faults["text"] = TextTooLong("too long")
    with ShardWriter(output, the_plan, 0) as writer:
        writer.write([part, row(1)], {kind: np.ones((2, 3), dtype=np.float32) for kind in ("image", "text")}, cut=1)
        marker = writer.finish({})
    assert (marker["rows"], marker["failed"], marker["halves"], marker["cut"]) == (2, 0, 1, 1)
    assert marker["errors"]["text_too_long"]["rows"] == 1
    table = pq.read_table(tmp_path / output.names(0, the_plan.shards)["metadata"])
    assert table["error"].to_pylist() == ["too long", None]
    report = Report(str(tmp_path), "m", "f", 1)
    report.count(marker)
    assert (report.halves, report.cut, report.status, report.reasons["text_too_long"].rows) == (1, 1, 3, 1)


def test_the_plan_of_a_run_is_one_that_an_earlier_release_reads() -> None:
    assert "long_texts" not in plan().to_json()["options"]
    cut = plan(long_texts="cut")
    assert RunPlan.from_json(cut.to_json()) == cut


def test_a_shard_of_failures_alone_leaves_no_empty_matrix(tmp_path: Path) -> None:
    marker = write(Output(str(tmp_path)), plan(), 0, good=0, bad=2)
    assert sorted(marker["files"]) == ["errors/errors_00.parquet"]
    assert marker_if_complete(Output(str(tmp_path)), plan(), 0)


def test_what_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(Output(str(tmp_path)), plan(), 0) as writer:
            writer.write([row(1)], {"image": np.ones((1, 3), np.float32), "text": np.ones((1, 3), np.float32)})
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert not any(tmp_path.rglob("*"))


def test_a_marker_of_another_plan_or_of_a_cut_file_does_not_count(tmp_path: Path) -> None:
    output, the_plan = Output(str(tmp_path)), plan()
    write(output, the_plan, 0, good=4)
    assert marker_if_complete(output, the_plan, 0)
    assert marker_if_complete(output, RunPlan(**{**the_plan.__dict__, "id": "q"}), 0) is None
    file = tmp_path / "img_emb/img_emb_00.npy"
    file.write_bytes(file.read_bytes()[:-1])
    assert marker_if_complete(output, the_plan, 0) is None
    (tmp_path / "shards/shard_00.json").write_bytes(b"{")
    assert marker_if_complete(output, the_plan, 0) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG])
def test_what_cannot_be_written_says_what_to_do(number: int) -> None:
    message = OutputError.because(OSError(number, "x")).message
    assert message.startswith("the output cannot be written: ")
    assert any(word in message for word in ("make room", "choose another", "raise the limit"))


def test_a_plan_is_read_shard_by_shard(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    shards = [
        Shard([Piece(b"a\xff", 0, 3, 10, "note"), Piece(b"b")], 5),
        Shard([Piece(b"c", size=7), Piece(b"d", size=8)], 2),
    ]
    seen: list[tuple[int, int]] = []
    assert write_plan(output, iter(shards), lambda *count: seen.append(count)) == (2, 7)
    assert seen == [(1, 5), (2, 7)]
    file = PlanFile(output)
    assert [file.shard(n) for n in range(2)] == shards
    assert [file.rows(n) for n in range(2)] == [5, 2]
    assert file.weights(2).tolist() == [10, 15]
    assert write_plan(output, iter([Shard([Piece(b"t")], None)]), lambda *_: None) == (1, None)
    with pytest.raises(SourceError, match="nothing to embed"):
        write_plan(output, iter([]), lambda *_: None)
