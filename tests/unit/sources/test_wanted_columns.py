"""Which of a source's own columns the metadata keep, where that is asked for, in every format that has columns."""

from __future__ import annotations

import csv
import json
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from clip_queue import dry_run
from clip_queue.bulk.output.errors import AnotherRun
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.resume import check_same
from clip_queue.shared.errors import BadInput
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.source import Source, SourceError

ROWS = [{"caption": f"row {n}", "a": n, "b": f"b{n}", "c": {"deep": n}} for n in range(4)]
NAMES = ("source_file", "source_row")
SETTINGS = Settings()


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def members(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    return {f"{n}.json": json.dumps(row).encode() for n, row in enumerate(rows)}


def write_tar(path: Path, rows: list[dict[str, Any]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members(rows).items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, BytesIO(data))


def write_zip(path: Path, rows: list[dict[str, Any]]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members(rows).items():
            file.writestr(name, data)


WRITE: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "in.csv": write_csv,
    "in.jsonl": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))) and None,
    "in.json": lambda path, rows: path.write_text(json.dumps(rows)) and None,
    "in.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
    "in.feather": lambda path, rows: feather.write_feather(pa.Table.from_pylist(rows), path),
    "in.tar": write_tar,
    "in.zip": write_zip,
}


def planned(path: Path, columns: object) -> tuple[Source, list[dict[str, Any]]]:
    """The source as it was planned, and the columns of its rows."""
    asked: Any = {"columns": columns}
    request = EmbedRequest.of(path, asked).source
    source, shards = registry.plan_shards(request, 100, SETTINGS)
    rows = [row.columns for shard in shards for row in registry.read(source, shard.pieces, SETTINGS)]
    return source, rows


@pytest.mark.parametrize("file", WRITE)
@pytest.mark.parametrize("columns", ["b,a", ["a", "b"], " a, b"])
def test_the_metadata_keep_the_columns_that_are_wanted_and_what_names_a_row(
    tmp_path: Path, file: str, columns: object
) -> None:
    WRITE[file](tmp_path / file, ROWS)
    source, rows = planned(tmp_path / file, columns)
    own = {name for name in source.columns if name not in ("key", "extra")}
    assert own == {"a", "b"}
    assert [row["caption"] for row in rows] == [row["caption"] for row in ROWS]
    assert [str(row["a"]) for row in rows] == ["0", "1", "2", "3"]
    assert not any("c" in row or row.get("extra") for row in rows)
    assert dry_run(tmp_path / file, columns="a").source.columns.keys() >= {"a", *NAMES}  # type: ignore[arg-type]


@pytest.mark.parametrize("file", WRITE)
def test_a_column_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path, file: str) -> None:
    WRITE[file](tmp_path / file, ROWS)
    with pytest.raises(SourceError, match=r"there is no column 'd' to keep; the columns are: .*a, b, c"):
        planned(tmp_path / file, "a,d")


@pytest.mark.parametrize("file", WRITE)
def test_none_at_all_may_be_wanted_and_the_caption_may_be_named(tmp_path: Path, file: str) -> None:
    WRITE[file](tmp_path / file, ROWS)
    assert {*planned(tmp_path / file, "")[0].columns} <= {"key", "extra"}
    source, rows = planned(tmp_path / file, "caption,a")
    assert {*source.columns} <= {"a", "key", "extra"}
    assert rows[0]["caption"] == "row 0"


def test_a_column_with_a_comma_in_its_name_is_quoted(tmp_path: Path) -> None:
    WRITE["in.jsonl"](tmp_path / "in.jsonl", [{"caption": "x", "a,b": 1, "c": 2}])
    assert {*planned(tmp_path / "in.jsonl", '"a,b"')[0].columns} == {"a,b", "extra"}


@pytest.mark.parametrize("format", ["folder", "text"])
def test_a_source_without_columns_has_none_to_choose(tmp_path: Path, format: str) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    asked: Any = {"format": format, "columns": "a"}
    with pytest.raises(SourceError, match=f"a source of the format {format} has no columns: webdataset, zip, parquet,"):
        EmbedRequest.of(tmp_path / "in.txt", asked)


def test_a_column_that_comes_late_is_found(tmp_path: Path) -> None:
    rows = [{"caption": "x", "a": n} for n in range(1_200)]
    WRITE["in.jsonl"](tmp_path / "in.jsonl", [*rows, {"caption": "y", "late": [1, 2]}])
    source, found = planned(tmp_path / "in.jsonl", "late")
    assert source.columns == {"late": "string", "extra": "string"}
    assert found[-1]["late"] == "[1,2]"


def test_what_is_left_out_is_counted_whatever_columns_are_wanted(tmp_path: Path) -> None:
    WRITE["in.csv"](tmp_path / "in.csv", [{"caption": "x", "image_url": "https://a/b.png", "a": "1", "b": "2"}])
    asked: Any = {"columns": "a", "images": False}
    source, shards = registry.plan_shards(EmbedRequest.of(tmp_path / "in.csv", asked).source, 10, SETTINGS)
    rows = [row for shard in shards for row in registry.read(source, shard.pieces, SETTINGS)]
    assert [row.left_out for row in rows] == [("images",)]
    assert {*source.columns} == {"a", "image_url"}


# Files of one table that differ


def tables(folder: Path, first: dict[str, Any], second: dict[str, Any]) -> Path:
    (folder / "in").mkdir()
    for n, columns in enumerate((first, second)):
        pq.write_table(pa.table(columns), folder / "in" / f"{n}.parquet")
    return folder / "in"


def test_columns_that_no_type_unites_are_named_with_how_to_leave_them_out(tmp_path: Path) -> None:
    source = tables(
        tmp_path, {"caption": ["x"], "a": [1], "score": [1]}, {"caption": ["y"], "a": [1.5], "score": ["high"]}
    )
    with pytest.raises(SourceError) as refused:
        planned(source, None)
    assert "column 'score' of 1.parquet is string, in the files before it int64, which no type unites" in str(
        refused.value
    )
    assert str(refused.value).endswith("--columns caption,a")
    found, rows = planned(source, "caption,a")
    assert found.columns == {"a": "double"}
    assert [row["a"] for row in rows] == [1.0, 1.5]
    with pytest.raises(SourceError, match=r"column 'score' of 1\.parquet"):
        planned(source, "score")


@pytest.mark.parametrize("columns", [None, "a"])
def test_what_is_to_be_embedded_is_never_left_out_for_its_types(tmp_path: Path, columns: str | None) -> None:
    source = tables(tmp_path, {"caption": ["x"], "a": [1]}, {"caption": [3], "a": [2]})
    with pytest.raises(SourceError, match=r"column 'caption' of 1\.parquet is int64, in the files before it string"):
        planned(source, columns)


def test_a_file_may_lack_a_column_that_is_wanted(tmp_path: Path) -> None:
    source = tables(tmp_path, {"caption": ["x"], "a": [1]}, {"caption": ["y"], "b": ["only here"]})
    _, rows = planned(source, "b")
    assert [row.get("b") for row in rows] == [None, "only here"]


# Going on


def test_a_run_goes_on_with_the_columns_that_it_was_begun_with(tmp_path: Path) -> None:
    WRITE["in.csv"](tmp_path / "in.csv", ROWS)
    source, _ = planned(tmp_path / "in.csv", "a")
    plan = RunPlan("p", source, ModelInfo("m", "none", "f", 1, 8, (4, 4), "fp32"), PlanOptions(), 1, 4)

    def again(**asked: Any) -> None:
        check_same(plan, EmbedRequest.of(tmp_path / "in.csv", asked).source, PlanOptions(), "m")

    again()
    again(columns=["a"])
    with pytest.raises(AnotherRun, match=r"the columns is \['a'\] there, \['b'\] here"):
        again(columns="b")


def test_names_are_text(tmp_path: Path) -> None:
    WRITE["in.csv"](tmp_path / "in.csv", ROWS)
    with pytest.raises(BadInput, match="columns are names"):
        planned(tmp_path / "in.csv", [1])
