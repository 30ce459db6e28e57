"""A digest of a table's rows as they are read, by which an update sees which shards of a changed file are as before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from clip_queue.sources.source import Row, Source


class RowsDigest:
    """Over the rows of a shard, in order: their metadata, their texts, their errors, and images that the table itself
    holds. What a path or a URL leads to is not looked at."""

    def __init__(self, source: Source) -> None:
        self._names = ("image_path", "caption", *source.columns)
        self._hash = hashlib.blake2b(digest_size=16)

    def of(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The same rows; each is counted in before it is given."""
        for row in rows:
            errors = [str(error) for error in (row.error, *row.faults.values()) if error]
            values = [row.columns.get(name) for name in self._names]
            image = row.image if isinstance(row.image, bytes) else b""
            self._hash.update(repr((values, row.text, errors, len(image))).encode("utf-8", "surrogatepass"))
            self._hash.update(image)
            yield row

    def hex(self) -> str:
        return self._hash.hexdigest()
