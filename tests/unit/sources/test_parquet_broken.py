"""Parquet files that are broken, change or go: which rows are lost, and what their errors say."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.shared.errors import BadInput
from clip_queue.sources.source import BrokenContainer, SourceError
from tests.unit.sources.parquet_files import (
    HF_IMAGE,
    errors,
    find,
    paths,
    planned,
    put,
    read_all,
    refusal,
    rows,
)


def corrupt(path: Path, group: int, column: int = 0) -> None:
    """Flip the bytes of a column's last page in one row group."""
    about = pq.ParquetFile(path).metadata.row_group(group).column(column)
    data = bytearray(path.read_bytes())
    end = (about.dictionary_page_offset or about.data_page_offset) + about.total_compressed_size
    for n in range(end - 40, end):
        data[n] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_a_broken_row_group_costs_its_rows(tmp_path: Path, compression: str) -> None:
    images = [os.urandom(20) * 20 for _ in range(30)]
    path = put(
        tmp_path / "t.parquet", {"image": images}, row_group_size=10, compression=compression, use_dictionary=False
    )
    corrupt(path, 1)
    found = rows(path, 12)
    lost = list(range(10, 20))
    assert list(errors(found)) == lost
    assert all(isinstance(found[n].error, BrokenContainer) for n in lost)
    assert paths(found) == [f"t.parquet#{n}" for n in range(30)]
    assert [row.image for row in found if not row.error] == images[:10] + images[20:]
    assert errors(found)[10].startswith("t.parquet row group 1 cannot be read (")
    assert errors(found)[10].endswith("): 2 rows are lost")  # of this shard
    assert errors(found)[12].endswith("): 8 rows are lost")


def test_rows_before_a_broken_page_are_kept(tmp_path: Path) -> None:
    images = [os.urandom(1000) for _ in range(40)]
    options = {"data_page_size": 4000, "write_batch_size": 4, "use_dictionary": False, "write_page_checksum": True}
    path = put(tmp_path / "t.parquet", {"image": images}, compression="none", **options)
    corrupt(path, 0)
    found = read_all(*planned(path, 100), batch_rows=5)
    lost = list(errors(found))
    assert lost == list(range(lost[0], 40))
    assert 30 <= lost[0] < 40
    assert [row.image for row in found[: lost[0]]] == images[: lost[0]]
    assert errors(found)[39].endswith(f": {len(lost)} rows are lost")


def test_files_that_change_go_or_were_never_whole(tmp_path: Path) -> None:
    whole = put(tmp_path / "a.parquet", {"text": ["a", "b", "c"]})
    (tmp_path / "b.parquet").write_bytes(whole.read_bytes()[:-20])
    (tmp_path / "c.parquet").write_bytes(b"")
    put(tmp_path / "d.parquet", {"text": ["d"]})
    source, shards = planned(tmp_path, 10)
    assert [shard.rows for shard in shards] == [6]
    found = read_all(source, shards)
    assert [row.text for row in found] == ["a", "b", "c", None, None, "d"]
    assert errors(found)[3].startswith("b.parquet could not be read when it was planned (")
    assert paths(found)[3:] == ["b.parquet#0", "c.parquet#0", "d.parquet#0"]
    data = whole.read_bytes()
    whole.write_bytes(data[:-20] + b"\0" * 20)
    assert list(errors(read_all(source, shards))) == [0, 1, 2, 3, 4]
    assert errors(read_all(source, shards))[2].endswith(": 3 rows are lost")
    whole.unlink()
    assert (
        errors(read_all(source, shards))[0] == "a.parquet cannot be read (No such file or directory): 3 rows are lost"
    )
    whole.write_bytes(data + data)
    with pytest.raises(SourceError, match=r"a\.parquet has changed"):
        read_all(source, shards)
    assert "can be read as parquet" in refusal(tmp_path / "{b,c}.parquet")


def test_an_image_of_a_table_that_breaks_is_not_found(tmp_path: Path) -> None:
    path = put(tmp_path / "t.parquet", {"image": pa.array([{"bytes": b"1", "path": "a.jpg"}], HF_IMAGE)})
    source, _ = planned(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(OSError, match="Parquet magic bytes not found"):
        find(source, "a.jpg")
    with pytest.raises(BadInput, match="was embedded without images"):
        find(replace(source, images=False), "a.jpg")
