"""Outputs of runs that lie in a source are no part of it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.bulk.output.layout import PLAN, Output
from clip_queue.bulk.output.plan_file import SCHEMA
from clip_queue.bulk.run.embed import ignore
from clip_queue.bulk.run.planner import Planner
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.shared.settings import Settings
from clip_queue.sources.changes import changes
from clip_queue.sources.detect import detect
from clip_queue.sources.discovery import containers
from clip_queue.sources.left_out import PLAN_COLUMNS, PLAN_NAME
from clip_queue.sources.source import Piece
from tests.unit.sources.parquet_files import put
from tests.unit.sources.tar_files import tar

SETTINGS = Settings()


def test_a_plan_file_is_what_the_sources_take_it_for() -> None:
    assert (PLAN_NAME.decode(), PLAN_COLUMNS) == (PLAN, SCHEMA.names)


def fill(folder: Path, format: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if format == "folder":
        (folder / "a.png").write_bytes(b"x")
    elif format == "webdataset":
        (folder / "a.tar").write_bytes(tar([("a.jpg", b"x")]))
    elif format == "parquet":
        put(folder / "a.parquet", {"caption": ["a", "b"]})
    else:
        (folder / "a.jsonl").write_text('{"text": "a"}\n')


@pytest.mark.parametrize(
    ("format", "pattern"),
    [
        ("folder", ""),
        ("webdataset", ""),
        ("parquet", ""),
        ("parquet", "/**/*"),
        ("jsonl", ""),
        ("jsonl", "/**/*.jsonl"),
    ],
)
@pytest.mark.parametrize("name", ["vectors", "a0"])
def test_an_output_in_its_source_is_left_out(tmp_path: Path, format: str, name: str, pattern: str) -> None:
    data = tmp_path / "data"
    fill(data / "z", format)
    output = Output(str(data / name))
    url = str(data) + pattern
    request = EmbedRequest.of(url, {"format": format} if pattern else {})
    planned = Planner(output, request, SETTINGS, ignore, lambda: False).write_shards()  # twice: it has few rows
    plan = pq.read_table(data / name / PLAN)
    assert [path.decode() for path in plan["path"].to_pylist()] == [str(next((data / "z").iterdir()))]
    assert planned.source.storage["passed"] == {}
    pieces = [Piece(*row) for row in zip(*plan.drop(["rows"]).to_pydict().values(), strict=True)]
    put(data / name / "metadata" / "metadata_0.parquet", {"caption": ["a"]})
    (data / name / "manifest.json").write_text("{}")
    assert str(changes(planned.source, pieces, 0)) == ""
    assert detect(str(data)) == format


def test_what_a_deep_pattern_matches_in_an_output_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "a.json").write_text("[]")
    pq.write_table(pa.table({name: [] for name in PLAN_COLUMNS}), put(tmp_path / "out" / PLAN, {"a": [1]}))
    (tmp_path / "out" / "manifest.json").write_text("{}")
    (tmp_path / "out" / "shards").mkdir()
    (tmp_path / "out" / "shards" / "shard_0.json").write_text("{}")
    found = containers(f"{tmp_path}/**/*.json", (".json",))
    assert [path for path, _ in found] == [str(tmp_path / "z" / "a.json").encode()]


def test_another_file_of_that_name_is_a_file_like_others(tmp_path: Path) -> None:
    put(tmp_path / "d" / "plan.parquet", {"caption": pa.array(["a"])})
    request = EmbedRequest.of(str(tmp_path), {})
    planned = Planner(Output(str(tmp_path / "out")), request, SETTINGS, ignore, lambda: False).write_shards()
    assert planned.rows == 1
