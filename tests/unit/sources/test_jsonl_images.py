"""Images in JSON Lines: lists of them, objects that stand for one, and what is in base64."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from clip_queue.bulk.run.dry_run import dry_run
from clip_queue.bulk.run.scope import scope_text
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.formats import jsonl
from clip_queue.sources.place import place_of, with_places
from clip_queue.sources.source import Row, Source
from tests.images import noise_image
from tests.unit.sources.tables import errors

SETTINGS = Settings()
INLINE = b64encode(noise_image()).decode()


def put(path: Path, *written: dict[str, Any]) -> Path:
    for name in "abc":
        (path.parent / f"{name}.png").write_bytes(name.encode())
    path.write_text("".join(f"{json.dumps(row)}\n" for row in written))
    return path


def rows(path: Path, **asked: Any) -> tuple[Source, list[Row]]:
    """All rows; each image must be found again by its row's metadata."""
    source, shards = registry.plan_shards(Source(str(path), "jsonl", **asked), 2, SETTINGS)
    source = with_places(source)
    found = [row for shard in shards for row in registry.read(source, shard.pieces, SETTINGS)]
    for row in found:
        if row.image is not None:
            path_of = row.columns["image_path"]
            assert registry.find_image(source, path_of, SETTINGS, place_of(source, row.columns)) == loaded(row)
    return source, found


def loaded(row: Row) -> bytes | None:
    return row.image() if callable(row.image) else row.image


def test_each_image_of_a_list_is_a_row(tmp_path: Path) -> None:
    written: list[dict[str, Any]] = [
        {"images": ["a.png", "b.png"], "caption": "two", "n": 1},
        {"images": ["c.png"], "caption": "one"},
        {"images": [], "caption": "none"},
        {"caption": "nothing"},
        {"images": "a.png", "caption": "alone"},
        {"images": [{"path": "b.png"}, 5, {"bytes": INLINE, "path": "x.png"}], "caption": "mixed"},
    ]
    source, found = rows(put(tmp_path / "0.jsonl", *written))
    assert scope_text(source) == "images and texts: images from `images`, texts from `caption`"
    assert [loaded(row) for row in found] == [b"a", b"b", b"c", None, None, b"a", b"b", None, noise_image()]
    assert [row.text for row in found] == ["two", "two", "one", "none", "nothing", "alone", "mixed", "mixed", "mixed"]
    places = [(row.columns["source_row"], row.columns["source_image"]) for row in found]
    assert places == [(0, 0), (0, 1), (1, 0), (2, None), (3, None), (4, None), (5, 0), (5, 1), (5, 2)]
    assert (found[1].columns["n"], found[1].columns["images"]) == (1, '["a.png","b.png"]')
    assert found[-1].columns["image_path"] == "0.jsonl#5[2]"
    assert found[-1].columns["images"] is None, "base64 is not kept beside its vector"
    assert list(errors(found)) == [3, 4, 7]
    assert dry_run(tmp_path / "0.jsonl").rows is None, "only reading tells how many there are"


def test_one_image_of_each_list_is_chosen(tmp_path: Path) -> None:
    path = put(tmp_path / "0.jsonl", {"images": ["a.png", "b.png"]}, {"images": ["c.png"]}, {"images": "a.png"})
    source, found = rows(path, image_column="images[1]")
    assert "source_image" not in source.columns
    assert [loaded(row) for row in found] == [b"b", None, b"a"]


def test_a_list_that_comes_late_is_its_row_s_error(tmp_path: Path) -> None:
    path = put(tmp_path / "0.jsonl", {"image": "a.png"}, {"image": ["b.png"]}, {"image": ["b.png", "c.png"]})
    source, shards = jsonl.plan_shards(Source(str(path), "jsonl", texts=False), 9, SETTINGS, sample_lines=1)
    found = [row for shard in shards for row in jsonl.read(source, shard.pieces, SETTINGS)]
    assert [loaded(row) for row in found] == [b"a", b"b", None]
    assert errors(found)[2].endswith("choose one, as column 'NAME[0]'.")
    assert len(rows(path, image_column="image[0]")[1]) == 3
    assert len(rows(path)[1]) == 4, "among the first rows it makes each image a row"


@pytest.mark.parametrize("image", [{"path": "a.png"}, {"bytes": None, "path": "a.png"}, {"url": "a.png", "w": 1}])
def test_an_object_stands_for_an_image(tmp_path: Path, image: dict[str, Any]) -> None:
    _, found = rows(put(tmp_path / "0.jsonl", {"image": image, "caption": "x"}))
    assert [loaded(row) for row in found] == [b"a"]
    _, found = rows(put(tmp_path / "0.jsonl", {"image": {"bytes": INLINE, "path": "a.png"}}))
    assert [loaded(row) for row in found] == [noise_image()]
