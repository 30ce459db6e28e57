"""A row is found again by what identifies it, whatever other rows have the same ``image_path``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.columns import own_name
from clip_queue.sources.place import place_of, with_places
from clip_queue.sources.source import Place, Row, Source
from tests.unit.sources.parquet_files import HF_IMAGE, put
from tests.unit.sources.tar_files import tar

SETTINGS = Settings()


def planned(url: Path, format: str, **asked: Any) -> tuple[Source, list[Row]]:
    source, shards = registry.plan_shards(Source(str(url), format, **asked), 10, SETTINGS)
    source = with_places(source)
    return source, [row for shard in shards for row in registry.read(source, shard.pieces, SETTINGS)]


def found(source: Source, row: Row) -> bytes:
    return registry.find_image(source, row.columns["image_path"], SETTINGS, place_of(source, row.columns))


@pytest.mark.parametrize(("format", "text"), [("csv", "file_name,text\n0.png,a\n"), ("jsonl", '{"path": "0.png"}\n')])
def test_tables_of_several_folders_that_name_the_same_file(tmp_path: Path, format: str, text: str) -> None:
    for part in ("test", "train"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0.png").write_bytes(part.encode())
        (tmp_path / part / f"m.{format}").write_text(text)
    source, rows = planned(tmp_path, format)
    assert [row.columns["image_path"] for row in rows] == ["0.png", "0.png"]
    assert [row.columns["source_file"] for row in rows] == [f"test/m.{format}", f"train/m.{format}"]
    assert [row.columns["source_row"] for row in rows] == [0, 0]
    assert [found(source, row) for row in rows] == [b"test", b"train"]


def test_rows_of_parquet_whose_images_all_have_one_path(tmp_path: Path) -> None:
    images = pa.array([{"bytes": b"%d" % n, "path": "image.png"} for n in range(3)], HF_IMAGE)
    for name in ("a", "b"):
        put(tmp_path / name / "0.parquet", {"image": images}, row_group_size=2)
    source, rows = planned(tmp_path, "parquet")
    assert {row.columns["image_path"] for row in rows} == {"image.png"}
    places = [place_of(source, row.columns) for row in rows]
    assert places == [Place(f"{name}/0.parquet", n) for name in ("a", "b") for n in range(3)]
    assert [found(source, row) for row in rows] == [b"0", b"1", b"2"] * 2


def test_members_of_a_tar_that_have_one_name(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("c.png", b"4")]))
    source, rows = planned(tmp_path, "webdataset")
    assert [row.columns["image_path"] for row in rows] == [
        f"t.tar/{name}" for name in ("a.jpg", "b.jpg", "a.jpg", "c.png")
    ]
    assert [row.columns["source_row"] for row in rows] == [0, 1, 2, 3]
    assert [found(source, row) for row in rows] == [b"1", b"2", b"3", b"4"]


def test_an_image_of_a_folder_is_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    source, (row,) = planned(tmp_path, "folder")
    assert place_of(source, row.columns) == Place("a.png")
    assert found(source, row) == b"a"


def test_a_row_that_failed_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,text\n0.png\n")
    _, (row,) = planned(tmp_path, "csv")
    assert row.error
    assert (row.columns["source_file"], row.columns["source_row"]) == ("a.csv", 0)


def test_a_source_without_the_columns_gets_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    source, shards = registry.plan_shards(Source(str(tmp_path), "folder"), 10, SETTINGS)
    (row,) = [row for shard in shards for row in registry.read(source, shard.pieces, SETTINGS)]
    assert set(row.columns) == {"image_path", "caption"}, "as release 0.1.0 planned it"
    assert place_of(source, row.columns) is None
    assert found(source, row) == b"a"


OWN = {"image": "0.png", "source_file": "camera/7.raw", "source_row": 4, "source_image": "x"}


def as_csv(path: Path) -> dict[str, str]:
    path.with_suffix(".csv").write_text(f"{','.join(OWN)}\n{','.join(map(str, OWN.values()))}\n")
    return dict.fromkeys(OWN, "string")


def as_jsonl(path: Path) -> dict[str, str]:
    path.with_suffix(".jsonl").write_bytes(orjson.dumps(OWN))
    return {**dict.fromkeys(OWN, "string"), "source_row": "int64", "extra": "string"}


def as_parquet(path: Path) -> dict[str, str]:
    pq.write_table(pa.Table.from_pylist([OWN]), path.with_suffix(".parquet"))
    return {**dict.fromkeys(OWN, "string"), "source_row": "int64"}


def as_tar(path: Path) -> dict[str, str]:
    own = orjson.dumps({name: value for name, value in OWN.items() if name != "image"})
    path.with_suffix(".tar").write_bytes(tar([("0.png", b"0"), ("0.json", own)]))
    return {
        "key": "string",
        "source_file": "string",
        "source_row": "int64",
        "source_image": "string",
        "extra": "string",
    }


@pytest.mark.parametrize(
    ("format", "make"),
    [("csv", as_csv), ("jsonl", as_jsonl), ("parquet", as_parquet), ("webdataset", as_tar)],
)
def test_own_columns_of_an_output_that_0_1_0_began_keep_their_names(
    tmp_path: Path, format: str, make: Callable[[Path], dict[str, str]]
) -> None:
    (tmp_path / "0.png").write_bytes(b"0")
    columns = make(tmp_path / "a")
    source, shards = registry.plan_shards(Source(str(tmp_path), format), 10, SETTINGS)
    source = replace(source, columns=columns)  # as release 0.1.0 planned it
    (row,) = [row for shard in shards for row in registry.read(source, shard.pieces, SETTINGS)]
    number = "4" if format == "csv" else 4
    places = {"source_file": "camera/7.raw", "source_row": number, "source_image": "x"}
    assert {name: row.columns[name] for name in places} == places
    assert row.columns.get("extra") is None
    assert place_of(source, row.columns) is None
    assert found(source, row) == b"0"


def test_a_place_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("image\n0.png\n")
    (tmp_path / "0.png").write_bytes(b"secret")
    source, _ = planned(tmp_path / "in", "csv")
    with pytest.raises(BadInput, match="is not in"):
        registry.find_image(source, "0.png", SETTINGS, Place("../a.csv", 0))


def test_own_columns_of_these_names_are_renamed() -> None:
    names = ["file", "row", "image", "source_file", "source_row", "source_source_file", "source_image"]
    assert [own_name(name) for name in names] == [
        "file",
        "row",
        "image",
        "source_source_file",
        "source_source_row",
        "source_source_source_file",
        "source_source_image",
    ]
