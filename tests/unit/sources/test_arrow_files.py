"""Arrow files, as Hugging Face's `save_to_disk` writes them, and Feather: the same rows as of parquet."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pytest

from clip_queue.sources.detect import detect
from clip_queue.sources.source import Source, SourceError
from tests.unit.sources.parquet_files import HF_IMAGE
from tests.unit.sources.tables import errors, find, planned, read_all, rows

COLUMNS: dict[str, Any] = {
    "image": pa.array([{"bytes": bytes([n]) * 50, "path": f"{n}.png" if n % 2 else None} for n in range(10)], HF_IMAGE),
    "text": [f"text {n}" for n in range(10)],
    "label": [n % 3 for n in range(10)],
}


def stream(path: Path, columns: dict[str, Any] = COLUMNS, batch: int = 4, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def saved(folder: Path) -> Path:
    """What ``save_to_disk`` of a dataset with two splits leaves."""
    for split in ("train", "test"):
        stream(folder / split / "data-00000-of-00001.arrow")
        (folder / split / "dataset_info.json").write_text("{}")
        (folder / split / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return folder


def test_a_saved_dataset(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    assert detect(str(folder)) == "arrow"
    source, shards = planned(folder, "arrow")
    found = read_all(source, shards, 3)
    assert [row.text for row in found] == COLUMNS["text"] * 2
    assert [row.image for row in found] == [bytes([n]) * 50 for n in range(10)] * 2
    assert found[2].columns == {"image_path": "test/data-00000-of-00001.arrow#2", "caption": "text 2", "label": 2}
    assert found[3].columns["image_path"] == "3.png"
    for row in found[:10]:
        assert find(source, row.columns["image_path"]) == row.image


@pytest.mark.parametrize("kind", ["stream", "lz4 stream", "feather", "file"])
def test_each_kind_of_file_here_and_in_a_store(tmp_path: Path, memory: Any, kind: str) -> None:
    path = tmp_path / ("a.feather" if kind == "feather" else "a.arrow")
    table = pa.table(COLUMNS)
    if kind == "feather":
        pyarrow.feather.write_feather(table, str(path), chunksize=4)
    elif kind == "file":
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    else:
        options = {"options": pa.ipc.IpcWriteOptions(compression="lz4")} if kind == "lz4 stream" else {}
        stream(path, **options)
    memory.pipe(f"/{kind}/{path.name}", path.read_bytes())
    for url in (path, f"memory://{kind}/{path.name}"):
        source, shards = planned(url, "arrow")
        assert [row.text for row in read_all(source, shards, 3)] == COLUMNS["text"]
        assert [row.text for row in read_all(source, shards[::-1][1:], 3)][:3] == COLUMNS["text"][6:9]
        assert find(source, "9.png") == bytes([9]) * 50


def test_what_is_broken_costs_its_file(tmp_path: Path) -> None:
    stream(tmp_path / "a.arrow")
    whole = (tmp_path / "a.arrow").read_bytes()
    for name, data in (("b", whole[: len(whole) // 2]), ("c", b""), ("d", b"nothing of the kind"), ("e", whole[:4])):
        (tmp_path / f"{name}.arrow").write_bytes(data)
    found = rows(tmp_path, "arrow", 100)
    assert [row.text for row in found[:10]] == COLUMNS["text"]
    assert all("could not be read when it was planned" in why for why in errors(found).values())
    assert 3 <= len(errors(found)) <= 4
    gc.collect()


def test_caches_beside_the_data_are_not_embedded_unasked(tmp_path: Path) -> None:
    stream(tmp_path / "data-00000-of-00001.arrow")
    stream(tmp_path / "cache-0123.arrow")
    with pytest.raises(SourceError, match=r"is a cache of `datasets`: name the files to embed"):
        planned(tmp_path, "arrow")
    assert len(rows(tmp_path / "data-*.arrow", "arrow")) == 10


def test_a_plan_knows_the_columns(tmp_path: Path) -> None:
    source, _ = planned(stream(tmp_path / "a.arrow"), "arrow")
    assert (source.image_column, source.text_column, source.columns) == ("image", "text", {"label": "int64"})
    assert isinstance(source, Source)
