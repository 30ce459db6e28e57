"""Files of lines for tests, and their rows."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from clip_queue.shared.errors import ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.source import Row, Source, SourceError

SETTINGS = Settings()
FORMATS = ("text", "csv", "jsonl")


def planned(url: object, format: str, size: int = 3, **asked: Any) -> tuple[Source, list[Any]]:
    source, shards = registry.plan_shards(Source(str(url), format, **asked), size, SETTINGS)
    source = Source.from_json(orjson.loads(orjson.dumps(source.to_json())))  # as a worker gets it
    return source, list(shards)


def rows(url: object, format: str, size: int = 3, **asked: Any) -> list[Row]:
    """All rows; their number must be the plan's."""
    return read_all(*planned(url, format, size, **asked), size)


def read_all(source: Source, shards: list[Any], size: int) -> list[Row]:
    """The rows of all shards, which must be of ``size`` rows."""
    found = []
    for n, shard in enumerate(shards):
        part = list(registry.read(source, shard.pieces, SETTINGS))
        assert len(part) == shard.rows
        assert shard.rows == size or n == len(shards) - 1
        found += part
    return found


def find(source: Source, image_path: str) -> bytes:
    return registry.find_image(source, image_path, SETTINGS)


def refusal(url: object, format: str, **asked: Any) -> str:
    with pytest.raises(SourceError) as caught:
        planned(url, format, **asked)
    return caught.value.message


def why(row: Row) -> ClipError | None:
    """What is wrong with a row or with one half of it, first of all."""
    return row.error or next(iter(row.faults.values()), None)


def errors(found: list[Row]) -> dict[int, str]:
    return {n: error.message for n, row in enumerate(found) if (error := why(row))}
