"""Parquet: columns found and kept, and shards across files and row groups."""

from __future__ import annotations

import datetime as dt
import os
from base64 import b64encode
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.bulk.run.scope import scope_text
from clip_queue.shared.errors import BadImage, BadInput, ClipError
from clip_queue.sources import registry
from clip_queue.sources.formats import arrow, parquet
from clip_queue.sources.source import Place
from tests.images import noise_image
from tests.unit.sources.parquet_files import (
    HF_IMAGE,
    SETTINGS,
    errors,
    find,
    paths,
    planned,
    put,
    read_all,
    refusal,
    rows,
)


@pytest.mark.parametrize("size", [1, 3, 5, 7, 100])
def test_shards_span_files_and_row_groups(tmp_path: Path, size: int) -> None:
    put(tmp_path / "b" / "2.parquet", {"jpg": [b"%d" % n for n in range(7)]}, row_group_size=3)
    put(tmp_path / "a.parquet", {"jpg": [b"%d" % n for n in range(5)]}, row_group_size=2)
    put(tmp_path / "none.parquet", {"jpg": pa.array([], pa.binary())})
    source, shards = planned(tmp_path, size)
    assert [shard.rows for shard in shards[:-1]] == [size] * (len(shards) - 1)
    found = read_all(source, shards)
    assert [row.image for row in found] == [b"%d" % n for n in (*range(5), *range(7))]
    assert paths(found) == [f"a.parquet#{n}" for n in range(5)] + [f"b/2.parquet#{n}" for n in range(7)]
    assert find(source, "b/2.parquet#6") == b"6"
    with pytest.raises(BadInput):
        find(source, "c.parquet#0")
    with pytest.raises(ClipError):
        find(source, "a.parquet#5")


@pytest.mark.parametrize(
    ("columns", "image", "text"),
    [
        ({"path": ["p"], "Image": [b"i"], "TEXT": ["t"]}, "Image", "TEXT"),
        ({"url": ["u"], "photo_of": pa.array([{"bytes": b"i", "path": "p"}], HF_IMAGE)}, "photo_of", None),
        ({"URL": ["u"], "hash": [b"h"], "alt": ["t"], "caption": ["c"]}, "URL", "caption"),
        ({"n": [1], "text": ["t"], "image": [5]}, None, "text"),
        (
            {"caption": pa.array(["c"], pa.large_string()), "path": pa.array(["p"]).dictionary_encode()},
            "path",
            "caption",
        ),
    ],
)
def test_columns_are_chosen_by_name(
    tmp_path: Path, columns: dict[str, Any], image: str | None, text: str | None
) -> None:
    source, _ = planned(put(tmp_path / "t.parquet", columns))
    assert (source.image_column, source.text_column) == (image, text)
    assert (source.images, source.texts) == (image is not None, text is not None)
    assert planned(tmp_path / "t.parquet", image_column=image, text_column=text)[0] == source


def test_columns_are_asked_for_or_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "t.parquet", {"image": [b"i"], "a": ["1.jpg"], "b": ["t"], "n": [1]})
    source, _ = planned(path, image_column="a", text_column="b")
    assert (source.images, source.texts, source.columns) == (True, True, {"a": "string", "n": "int64"})
    source, _ = planned(path, images=False, text_column="b")
    assert (source.images, source.texts, source.columns) == (False, True, {"a": "string", "n": "int64"})
    assert "'c'; the columns are: image, a, b, n" in refusal(path, image_column="c")
    assert "'n' holds none to be read" in refusal(path, image_column="n")
    assert "looks like texts" in refusal(path, texts=True)
    assert "nothing to embed" in refusal(path, images=False)
    assert "nothing to embed" in refusal(put(tmp_path / "n.parquet", {"n": [1]}))


def test_nulls_and_what_is_no_text(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(),
        5,
        [None, pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 2, 3, 4))), pa.py_buffer(b"a\xff b")],
    )
    both = put(tmp_path / "both.parquet", {"image": [b"1", b"2", b"3", None, b"5"], "text": bad})
    found = rows(both)
    assert [row.image for row in found] == [b"1", b"2", b"3", None, b"5"]
    assert [row.text for row in found] == ["a", None, None, None, "b"]
    assert errors(found) == {
        1: "The row's text is not UTF-8.",
        3: "Could not load input image. Cause: The row has no image.",
    }
    assert isinstance(found[3].error, BadImage)
    found = rows(both, images=False)
    assert errors(found) == {
        1: "The row's text is not UTF-8.",
        2: "The row has no text.",
        3: "The row has no text.",
    }
    found = rows(put(tmp_path / "blobs.parquet", {"txt": [b"a", b"\xff", None]}))
    assert [row.text for row in found] == ["a", None, None]
    assert list(errors(found)) == [1, 2]


def test_images_with_paths_beside_them(tmp_path: Path) -> None:
    (tmp_path / "c.jpg").write_bytes(b"in a file")
    images = [{"bytes": b"1", "path": "a.jpg"}, {"bytes": b"2", "path": None}, {"bytes": None, "path": "c.jpg"}]
    images += [None, {"bytes": None, "path": None}, {"bytes": b"6", "path": "f#1.jpg"}]
    put(tmp_path / "t.parquet", {"image": pa.array(images, HF_IMAGE), "label": [1] * 6}, row_group_size=2)
    source, shards = planned(tmp_path)
    assert source.columns == {"label": "int64"}
    found = read_all(source, shards)
    assert paths(found) == ["a.jpg", "t.parquet#1", "c.jpg", "t.parquet#3", "t.parquet#4", "f#1.jpg"]
    assert [row.image for row in found[:2]] == [b"1", b"2"]
    assert callable(found[2].image)
    assert found[2].image() == b"in a file"
    assert list(errors(found)) == [3, 4]
    for path, data in [("a.jpg", b"1"), ("t.parquet#1", b"2"), ("c.jpg", b"in a file"), ("f#1.jpg", b"6")]:
        assert find(source, path) == data
    for path in ("t.parquet#3", "gone.jpg"):
        with pytest.raises(ClipError):
            find(source, path)


def test_paths_and_urls(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "1.jpg").write_bytes(b"one")
    put(tmp_path / "sub" / "t.parquet", {"image_path": ["1.jpg", "https://127.0.0.1/a", "", None, "gone.jpg"]})
    source, shards = planned(tmp_path)
    assert source.columns == {}
    found = read_all(source, shards)
    assert paths(found) == ["1.jpg", "https://127.0.0.1/a", "sub/t.parquet#2", "sub/t.parquet#3", "gone.jpg"]
    assert list(errors(found)) == [2, 3]
    one, web, _, _, gone = (row.image for row in found)
    assert callable(one)
    assert callable(web)
    assert callable(gone)
    assert one() == find(source, "1.jpg") == b"one"
    with pytest.raises(BadImage, match="fetch_allow_ip_hosts"):
        web()
    with pytest.raises(FileNotFoundError):
        gone()


def test_own_columns_keep_types_and_values(tmp_path: Path) -> None:
    zoned = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    table = {
        "text": ["a", "b"],
        "i": pa.array([1, None], pa.int8()),
        "f": pa.array([1.5, None], pa.float16()),
        "d": pa.array([dt.date(2024, 1, 2), None]),
        "ns": pa.array([1, None], pa.timestamp("ns")),
        "year0": pa.array([-(10**14) * 1000, 0], pa.timestamp("ms")),
        "zoned": pa.array([zoned, None], pa.timestamp("us", "UTC")),
        "decimal": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
        "list": [[1, 2], None],
        "struct": [{"a": zoned, "b": None}, None],
        "dictionary": pa.array(["x", None]).dictionary_encode(),
        "view": pa.array(["x", None], pa.string_view()),
        "sha": pa.array([b"abcd", None], pa.binary(4)),
        "nothing": pa.nulls(2),
        "blob": [b"left out", None],
        "blobs": [[b"left out"], None],
        "error": [True, None],
        "source_error": [False, None],
    }
    source, shards = planned(put(tmp_path / "t.parquet", table))
    assert source.columns == {
        "i": "int8",
        "f": "float",
        "d": "date32[day]",
        "ns": "timestamp[ns]",
        "year0": "timestamp[ms]",
        "zoned": "string",
        "decimal": "string",
        "list": "string",
        "struct": "string",
        "dictionary": "string",
        "view": "string",
        "sha": "binary",
        "nothing": "string",
        "source_error": "bool",
        "source_source_error": "bool",
    }
    found = read_all(source, shards)
    own = [(name, pa.type_for_alias(kind)) for name, kind in source.columns.items()]
    schema = pa.schema([("image_path", pa.string()), ("caption", pa.string()), *own])
    again = pa.Table.from_pylist([row.columns for row in found], schema=schema)
    pq.write_table(again, tmp_path / "again.parquet")
    again = pq.read_table(tmp_path / "again.parquet")
    assert again.schema.equals(schema)
    assert again.select(["i", "d", "ns", "year0", "sha"]).equals(
        pa.table({key: table[key] for key in ("i", "d", "ns", "year0", "sha")}).cast(
            pa.schema([(key, again.schema.field(key).type) for key in ("i", "d", "ns", "year0", "sha")])
        )
    )
    first = again.drop_columns(["ns", "year0"]).to_pylist()[0]
    assert (first["zoned"], first["decimal"], first["list"]) == ("2024-01-02 03:04:05.000000Z", "1.50", "[1,2]")
    assert orjson.loads(first["struct"]) == {"a": "2024-01-02T03:04:05+00:00", "b": None}
    assert all(
        value is None for key, value in found[1].columns.items() if key not in ("image_path", "caption", "year0")
    )


def test_files_have_the_same_columns(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", {"text": ["a"], "n": pa.nulls(1), "s": ["x"]})
    put(tmp_path / "b.parquet", {"s": pa.array(["x"], pa.large_string()), "n": [1], "text": pa.nulls(1, pa.string())})
    put(tmp_path / "c.parquet", {"text": pa.nulls(1), "n": [2], "s": ["x"]})
    source, shards = planned(tmp_path)
    assert source.columns == {"n": "int64", "s": "string"}
    found = read_all(source, shards)
    assert [row.columns["n"] for row in found] == [None, 1, 2]
    assert list(errors(found)) == [1, 2]
    put(tmp_path / "d.parquet", {"text": ["a"], "n": ["1.5"], "s": ["x"]})
    assert "column 'n' of d.parquet is string, in the files before it int64" in refusal(tmp_path)


def test_columns_that_differ_are_united_by_the_widest_type(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", {"text": ["a"], "n": pa.array([1], pa.int32()), "u": pa.array([7], pa.uint32())})
    put(tmp_path / "b.parquet", {"text": ["b"], "n": [2.5], "t": ["more"], "u": pa.array([-1], pa.int8())})
    put(tmp_path / "c.parquet", {"n": [2**53 + 1], "image": [b"x"]})
    source, shards = planned(tmp_path)
    assert source.columns == {"n": "double", "u": "int64", "t": "string"}
    found = read_all(source, shards)
    assert [row.columns.get("n") for row in found] == [1.0, 2.5, float(2**53)]
    assert [row.columns.get("u") for row in found] == [7, -1, None]
    assert [row.columns.get("t") for row in found] == [None, "more", None]
    assert [row.text for row in found] == ["a", "b", None]
    assert list(errors(found)) == [0, 1]
    schema = pa.schema([(key, pa.type_for_alias(kind)) for key, kind in source.columns.items()])
    assert pa.Table.from_pylist([row.columns for row in found], schema=schema).num_rows == 3


@pytest.mark.parametrize(
    ("one", "other", "widest"),
    [
        ("int8", "int64", "int64"),
        ("uint8", "int32", "int64"),
        ("uint64", "int8", None),
        ("float", "int64", "double"),
        ("float", "double", "double"),
        ("null", "string", "string"),
        ("null", "null", "null"),
        ("string", "int64", None),
        ("timestamp[us]", "timestamp[ns]", None),
        ("bool", "int8", None),
        (None, None, None),
        (None, "string", None),
    ],
)
def test_the_widest_type(one: str | None, other: str | None, widest: str | None) -> None:
    assert arrow.widest(one, other) == arrow.widest(other, one) == widest


def test_of_several_captions_the_first_is_embedded_and_all_are_kept(tmp_path: Path) -> None:
    captions = pa.array([["", "one", "two"], [], None, ["three"]], pa.list_(pa.string()))
    put(tmp_path / "a.parquet", {"caption": captions, "tags": captions, "n": [1, 2, 3, 4]})
    source, shards = planned(tmp_path)
    found = read_all(source, shards)
    assert source.text_column == "caption"
    assert [row.text for row in found] == ["one", None, None, "three"]
    assert found[0].columns["source_caption"] == '["","one","two"]'
    assert list(errors(found)) == [1, 2]


def test_images_in_base64(tmp_path: Path) -> None:
    data = noise_image(1, format="PNG")
    put(tmp_path / "a.parquet", {"image": [b64encode(data).decode(), "gone.png"], "n": [1, 2]})
    source, shards = planned(tmp_path)
    first, second = read_all(source, shards)
    assert first.image == data
    assert first.columns == {"image_path": "a.parquet#0", "caption": None, "image": None, "n": 1}
    assert second.columns["image_path"] == "gone.png"
    assert find(source, "a.parquet#0") == data


def test_a_store(tmp_path: Path) -> None:
    data = put(tmp_path / "t.parquet", {"image": [b"1", b"2"], "text": ["a", "b"]}).read_bytes()
    store = fsspec.filesystem("memory")
    for name in ("x/2", "1"):
        store.pipe_file(f"/tables/{name}.parquet", data)
    try:
        source, shards = planned("memory://tables", 3)
        found = read_all(source, shards)
        assert paths(found) == ["1.parquet#0", "1.parquet#1", "x/2.parquet#0", "x/2.parquet#1"]
        assert [row.text for row in found] == ["a", "b", "a", "b"]
        assert find(source, "x/2.parquet#1") == b"2"
        store.rm_file("/tables/1.parquet")
        assert list(errors(read_all(source, shards))) == [0, 1]
    finally:
        store.rm("/tables", recursive=True)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    put(tmp_path / "t.parquet", {"image": [b"1"]}).rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet"))
    source, shards = planned(tmp_path)
    assert paths(read_all(source, shards)) == ["\\xff.parquet#0"]
    assert find(source, "\\xff.parquet#0") == b"1"


def test_a_large_row_group_is_streamed(tmp_path: Path) -> None:
    images = pa.array([os.urandom(2**18) for _ in range(256)])  # 64 MiB
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 8}  # a page is never read in parts
    path = put(tmp_path / "t.parquet", {"image": images}, **options)
    expected = images.to_pylist()
    del images
    source, shards = planned(path, 200)
    before, most, count = pa.total_allocated_bytes(), 0, 0
    for shard in shards:
        for row in parquet.read(source, shard.pieces, SETTINGS):
            assert row.image == expected[count]
            count += 1
            most = max(most, pa.total_allocated_bytes() - before)
    assert count == 256
    assert most < 40 * 2**20


@pytest.mark.parametrize("names", [("path",), ("url",), ("url", "width"), ("bytes", "path")])
def test_a_struct_that_names_a_file_is_an_image(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    whole = {"path": "a.png", "url": "a.png", "bytes": b64encode(noise_image()).decode(), "width": 3}
    put(
        tmp_path / "0.parquet",
        {"image": [{name: whole[name] for name in names}], "meta": [{"url": "x"}], "text": ["t"]},
    )
    source, _ = planned(tmp_path)
    assert (source.image_column, source.text_column) == ("image", "text")
    (row,) = rows(tmp_path)
    expected = noise_image() if "bytes" in names else b"a"
    assert (row.image() if callable(row.image) else row.image) == expected
    assert registry.find_image(source, "any", SETTINGS, Place("0.parquet", 0)) == expected


def test_base64_that_has_lost_its_type_is_an_image(tmp_path: Path) -> None:
    data = noise_image()
    put(
        tmp_path / "0.parquet", {"image": [b64encode(data), b"data:image/png;base64," + b64encode(data), data, b"/9j/"]}
    )
    assert [row.image for row in rows(tmp_path)] == [data, data, data, b"/9j/"]


def test_columns_of_bytes_that_are_not_embedded_are_named(tmp_path: Path) -> None:
    put(tmp_path / "0.parquet", {"image": [b"a"], "mask": [b"b"], "caption": ["c"], "raw": pa.array([[b"d"]])})
    text = scope_text(planned(tmp_path)[0])
    assert text.endswith("texts from `caption`; `mask`, `raw` may hold images: --image-column")
    put(tmp_path / "0.parquet", {"frame": [b"a"], "caption": ["c"]})
    assert scope_text(planned(tmp_path)[0]).endswith("; `frame` may hold images: --image-column")
    assert "frame" not in scope_text(planned(tmp_path, images=False)[0])


def test_what_cannot_be_united_says_how_it_differs(tmp_path: Path) -> None:
    put(tmp_path / "0.parquet", {"caption": ["a"]})
    put(tmp_path / "1.parquet", {"caption": [["a"]]})
    says = "column 'caption' of 1.parquet is list of text, in the files before it text, which no type unites"
    assert refusal(tmp_path) == f"{says}: embed these files apart"


def test_a_folder_of_images_is_of_no_use_to_images_that_are_there(tmp_path: Path) -> None:
    put(tmp_path / "0.parquet", {"image": [b"a"], "caption": ["c"]})
    assert "leave it out" in refusal(tmp_path, storage={"image_root": "/x"})
    put(tmp_path / "0.parquet", {"caption": ["c"]})
    assert "leave it out" in refusal(tmp_path, storage={"image_root": "/x"})
    put(tmp_path / "0.parquet", {"image": ["a.png"]})
    assert planned(tmp_path, storage={"image_root": "/x"})[0].images
