"""Parquet whose rows hold several images: each is a row, or one of them is chosen; and images that are not wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clip_queue.bulk.run.scope import scope_text
from clip_queue.shared.errors import ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.formats import parquet
from clip_queue.sources.place import place_of, with_places
from clip_queue.sources.source import Row, Source
from tests.unit.sources.parquet_files import HF_IMAGE, put, refusal

SETTINGS = Settings()
LISTS = [
    pa.list_(HF_IMAGE),
    pa.large_list(HF_IMAGE),
    pa.list_(pa.binary()),
    pa.list_(pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])),
]


def rows(url: Path, **asked: Any) -> tuple[Source, list[Row]]:
    source, shards = parquet.plan_shards(Source(str(url), "parquet", **asked), 3, SETTINGS)
    source = with_places(source)
    return source, [row for shard in shards for row in registry.read(source, shard.pieces, SETTINGS)]


def image(kind: pa.DataType, data: bytes) -> Any:
    return {"bytes": data, "path": "image.png"} if pa.types.is_struct(kind.value_type) else data


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_each_image_of_a_list_is_a_row_with_the_metadata_of_its_row(tmp_path: Path, kind: pa.DataType) -> None:
    lists = [[b"0", b"1"], [b"2"], [], None, [b"3", b"4", b"5"]]
    values = [None if each is None else [image(kind, data) for data in each] for each in lists]
    columns = {"images": pa.array(values, kind), "caption": list("abcde"), "n": range(5)}
    put(tmp_path / "0.parquet", columns, row_group_size=2)
    source, found = rows(tmp_path)
    assert (source.images, source.texts, source.image_column) == (True, True, "images")
    places = [(row.columns["source_row"], row.columns["source_image"]) for row in found]
    assert places == [(0, 0), (0, 1), (1, 0), (2, None), (3, None), (4, 0), (4, 1), (4, 2)]
    assert [row.image for row in found] == [b"0", b"1", b"2", None, None, b"3", b"4", b"5"]
    assert [row.text for row in found if row.image] == list("aabeee")
    assert [row.columns["n"] for row in found] == [0, 0, 1, 2, 3, 4, 4, 4]
    assert [number for number, row in enumerate(found) if row.faults] == [3, 4]  # their texts are embedded
    for row in found:
        if row.image:
            path = row.columns["image_path"]
            assert registry.find_image(source, path, SETTINGS, place_of(source, row.columns)) == row.image


def test_only_reading_tells_how_many_rows_lists_are(tmp_path: Path) -> None:
    put(tmp_path / "0.parquet", {"images": pa.array([[b"0", b"1"]], pa.list_(pa.binary()))})
    _, shards = parquet.plan_shards(Source(str(tmp_path), "parquet"), 3, SETTINGS)
    assert [shard.rows for shard in shards] == [None]


def test_one_image_of_each_list_is_chosen_by_its_number(tmp_path: Path) -> None:
    values = [[b"0", b"1"], [b"2"]]
    put(tmp_path / "0.parquet", {"images": pa.array(values, pa.list_(pa.binary())), "n": [1, 2]})
    source, found = rows(tmp_path, image_column="images[1]")
    assert [row.image for row in found] == [b"1", None]
    assert [row.columns["image_path"] for row in found] == ["0.parquet#0", "0.parquet#1"]
    assert registry.find_image(source, "0.parquet#0", SETTINGS, place_of(source, found[0].columns)) == b"1"
    assert "source_image" not in source.columns
    assert "there is no image column 'n[0]'" in refusal(tmp_path, image_column="n[0]")
    assert "there is no image column 'images[x]'" in refusal(tmp_path, image_column="images[x]")


def test_lists_of_paths(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / f"{name}.png").write_bytes(name.encode())
    put(tmp_path / "d" / "0.parquet", {"image_paths": [["a.png", "b.png"]], "caption": ["t"]})
    source, found = rows(tmp_path)
    assert [row.columns["image_path"] for row in found] == ["a.png", "b.png"]
    assert [row.image() for row in found if callable(row.image)] == [b"a", b"b"]
    assert found[0].columns["image_paths"] == '["a.png","b.png"]'
    assert [
        registry.find_image(source, r.columns["image_path"], SETTINGS, place_of(source, r.columns)) for r in found
    ] == [
        b"a",
        b"b",
    ]


def test_a_list_that_has_fewer_images_now_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "0.parquet", {"images": pa.array([[b"0", b"1"]], pa.list_(pa.binary()))})
    source, found = rows(tmp_path)
    place = place_of(source, found[1].columns)
    assert place is not None
    with pytest.raises(ClipError, match="fewer images"):
        registry.find_image(source, "0.parquet#0[1]", SETTINGS, place._replace(image=5))


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("images", "held"),
    [
        (pa.array([b"0", b"1", b"2", b"3"]), [1, 1, 1, 1]),
        (pa.array([None, None, b"2", None], pa.binary()), [0, 0, 1, 0]),
        (pa.array([None, {"bytes": b"1"}, {"path": "p"}, None], HF_IMAGE), [0, 1, 1, 0]),
        (pa.array([[b"0"], [], None, [b"1", b"2"]], pa.list_(pa.binary())), [1, 0, 0, 1]),
        (["a.png", "", None, " "], [1, 0, 0, 0]),
    ],
    ids=str,
)
def test_images_that_are_not_wanted_are_counted(tmp_path: Path, images: Any, held: list[int], statistics: bool) -> None:
    columns = {"image": images, "caption": list("abcd")}
    put(tmp_path / "0.parquet", columns, row_group_size=2, write_statistics=statistics)
    source, found = rows(tmp_path, images=False)
    assert source.storage["left_out"] == {"images": "image"}
    assert [len(row.left_out) for row in found] == held
    assert [row.columns["image_path"] for row in found] == [f"0.parquet#{n}" for n in range(4)]


def test_texts_that_are_not_wanted_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "0.parquet", {"image": [b"0", b"1", b"2"], "caption": ["a", " ", None]})
    _, found = rows(tmp_path, texts=False)
    assert [row.left_out for row in found] == [("texts",), (), ()]


def test_further_columns_of_images_are_named(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"0"}], HF_IMAGE)
    put(tmp_path / "0.parquet", {"image": image, "image_2": image, "caption": ["a"]})
    source, _ = rows(tmp_path)
    assert scope_text(source) == (
        "images and texts: images from `image`, texts from `caption`; `image_2` holds images as well: --image-column"
    )
    assert scope_text(rows(tmp_path, image_column="image_2")[0]).endswith(
        "`image` holds images as well: --image-column"
    )
    assert "as well" not in scope_text(rows(tmp_path, images=False)[0])


def test_a_column_of_another_type_that_is_named_as_images_is_named(tmp_path: Path) -> None:
    put(tmp_path / "0.parquet", {"image": [5], "caption": ["a"]})
    assert scope_text(rows(tmp_path)[0]) == "texts only: texts from `caption`; no images can be read in `image`"


def test_a_column_that_is_null_in_every_file_holds_nothing(tmp_path: Path) -> None:
    nothing = pa.array([None, None], pa.string())
    put(tmp_path / "0.parquet", {"image": [b"0", b"1"], "caption": nothing})
    put(tmp_path / "none.parquet", {"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())})
    source, _ = rows(tmp_path)
    assert scope_text(source) == "images only: images from `image`; no texts can be read in `caption`"
    assert "column 'caption' holds no text" in refusal(tmp_path, texts=True)
    assert "the text column 'caption' holds none to be read" in refusal(tmp_path, text_column="caption")
    put(tmp_path / "1.parquet", {"image": pa.array([None, None], pa.binary()), "caption": [None, "t"]})
    source, _ = rows(tmp_path)
    assert (source.images, source.texts) == (True, True), "one file is not all of them"
    put(tmp_path / "d" / "0.parquet", {"image": nothing, "url": ["u", None]}, row_group_size=1)
    assert rows(tmp_path / "d")[0].image_column == "url"
