"""Files of lines for tests, and their rows."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from clip_queue.sources.formats import csv as csv_format
from clip_queue.sources.formats import jsonl, text
from clip_queue.sources.source import Format, Row, Source, SourceError

MODULES: dict[Format, Any] = {Format.TEXT: text, Format.CSV: csv_format, Format.JSONL: jsonl}


def planned(url: object, format: Format, size: int = 3, **asked: Any) -> tuple[Source, list[Any]]:
    source, shards = MODULES[format].plan(Source(str(url), format, **asked), size)
    source = Source.from_json(orjson.loads(orjson.dumps(source.to_json())))  # as a worker gets it
    return source, list(shards)


def rows(url: object, format: Format, size: int = 3, **asked: Any) -> list[Row]:
    """All rows, with the plan checked against them."""
    source, shards = planned(url, format, size, **asked)
    found = []
    for n, shard in enumerate(shards):
        part = list(MODULES[format].read(source, shard.pieces))
        assert len(part) == shard.rows
        assert shard.rows == size or n == len(shards) - 1
        found += part
    return found


def refusal(url: object, format: Format, **asked: Any) -> str:
    with pytest.raises(SourceError) as caught:
        planned(url, format, **asked)
    return caught.value.message


def errors(found: list[Row]) -> dict[int, str]:
    return {n: row.error.message for n, row in enumerate(found) if row.error}
