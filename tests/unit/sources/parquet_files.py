"""Parquet files for tests, and their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.shared.errors import ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources.formats import parquet
from clip_queue.sources.source import Row, Shard, Source, SourceError

SETTINGS = Settings()
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def put(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def planned(url: object, size: int = 4, **asked: Any) -> tuple[Source, list[Shard]]:
    source, shards = parquet.plan_shards(Source(str(url), "parquet", **asked), size, SETTINGS)
    return Source.from_json(orjson.loads(orjson.dumps(source.to_json()))), list(shards)


def read_all(source: Source, shards: list[Shard], **options: Any) -> list[Row]:
    found = []
    for shard in shards:
        part = list(parquet.read(source, shard.pieces, SETTINGS, **options))
        assert len(part) == shard.rows
        found += part
    return found


def rows(url: object, size: int = 4, **asked: Any) -> list[Row]:
    return read_all(*planned(url, size, **asked))


def find(source: Source, image_path: str) -> bytes:
    return parquet.find_image(source, image_path, SETTINGS)


def refusal(url: object, **asked: Any) -> str:
    with pytest.raises(SourceError) as caught:
        planned(url, **asked)
    return caught.value.message


def why(row: Row) -> ClipError | None:
    """What is wrong with a row or with one half of it, first of all."""
    return row.error or next(iter(row.faults.values()), None)


def errors(found: list[Row]) -> dict[int, str]:
    return {n: error.message for n, row in enumerate(found) if (error := why(row))}


def paths(found: list[Row]) -> list[str]:
    return [row.columns["image_path"] for row in found]
