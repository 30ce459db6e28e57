"""Stores that fail, and bugs of ours: which become a row's error, and which do not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.shared.settings import Settings
from clip_queue.sources import registry, storage
from clip_queue.sources.formats import lines, parquet
from clip_queue.sources.formats.table import Table
from clip_queue.sources.source import Piece, Row, Source, SourceError
from tests.unit.sources.clients import SECRET, ClientError, EndpointConnectionError, Refused, raising

SETTINGS = Settings()

# A bug of ours is no error of a client's


class Bug(Exception):
    """What nobody expects."""


def test_a_bug_in_parsing_a_line_is_no_row_s_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    source, shards = registry.plan_shards(Source(str(tmp_path), "text"), 10, SETTINGS)
    (shard,) = shards

    def parse(table: Table, number: int, data: bytes) -> Row:
        raise Bug

    with pytest.raises(Bug):
        list(lines.read(source, shard.pieces, SETTINGS, lines.lines, parse))


def test_a_bug_in_a_splitter_is_no_row_s_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    source, shards = registry.plan_shards(Source(str(tmp_path), "text"), 10, SETTINGS)
    (shard,) = shards
    with pytest.raises(Bug):
        list(lines.read(source, shard.pieces, SETTINGS, raising(Bug()), lambda table, number, data: Row({})))
    with pytest.raises(Bug):
        list(lines.shards(source, lines.files(source.url, registry.FORMATS["text"]), 10, raising(Bug())))


def test_a_bug_in_making_rows_of_parquet_is_no_row_s_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "t.parquet")
    source, shards = registry.plan_shards(Source(str(tmp_path), "parquet"), 10, SETTINGS)
    (shard,) = shards
    monkeypatch.setattr(Table, "row", raising(Bug()))
    with pytest.raises(Bug):
        list(parquet.read(source, shard.pieces, SETTINGS))


def test_a_bug_in_walking_a_folder_is_not_a_folder_that_cannot_be_listed(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/d/a.jpg", b"x")
    monkeypatch.setattr(storage, "entries", raising(Bug()))
    with pytest.raises(Bug):
        registry.plan_shards(Source("memory://d", "folder"), 10, SETTINGS)


# Containers of a store that fails


@pytest.mark.parametrize("format", ["parquet", "text"])
def test_a_container_of_a_store_that_fails(memory: Any, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """An error of a client's own costs the container's rows; a store that is away costs none."""
    memory.pipe("/d/a", b"one\ntwo\n")
    source = Source("memory://d/a", format, images=False, texts=True, text_column="t", storage={"root": "/d"})
    piece = Piece(b"/d/a", 0, 2 if format == "parquet" else 8, 8, "" if format == "parquet" else "0+2")
    with monkeypatch.context() as patched:
        patched.setattr(memory, "open", raising(ClientError(SECRET)))
        found = [row.error and row.error.message for row in registry.read(source, [piece], SETTINGS)]
        assert found == ["a cannot be read (ClientError): 2 rows are lost"] * 2
    for error in (EndpointConnectionError(SECRET), Refused("no")):
        with monkeypatch.context() as patched:
            patched.setattr(memory, "open", raising(error))
            with pytest.raises(storage.StoreAway, match=r"check .*the credentials"):
                list(registry.read(source, [piece], SETTINGS))


def test_a_table_of_a_store_that_is_away_is_not_planned(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": ["a"]}), out := io.BytesIO())
    memory.pipe({"/d/a.parquet": out.getvalue(), "/d/b.parquet": b"no parquet"})
    source, shards = registry.plan_shards(Source("memory://d", "parquet"), 10, SETTINGS)
    assert [piece.note != "" for shard in shards for piece in shard.pieces] == [False, True]
    monkeypatch.setattr(memory, "open", raising(EndpointConnectionError()))
    with pytest.raises(SourceError, match=r"/d/a\.parquet cannot be read: EndpointConnectionError: check"):
        registry.plan_shards(Source("memory://d", "parquet"), 10, SETTINGS)
    assert source.texts
