"""Tars for tests, and their rows."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from clip_queue.shared.settings import Settings
from clip_queue.sources.formats import webdataset
from clip_queue.sources.source import Piece, Row, Source

SETTINGS = Settings()

Member = tuple[str | tarfile.TarInfo, bytes]

# A tar's rows that everything is tried on: names long enough for extended headers, images across blocks.
MEMBERS: list[Member] = [
    ("a/0001.jpg", b"\xff\xd8" * 700),
    ("a/0001.txt", b"the first\n"),
    ("a/0001.json", orjson.dumps({"width": 3, "caption": "json's", "license": "CC0"})),
    ("a/0002.png", b"second"),
    ("a/0002.json", orjson.dumps({"width": 4, "caption": "only json's"})),
    ("b/" + "n" * 150 + ".jpg", b"third"),
    ("b/日本.webp", b""),
    ("b/日本.txt", "ü".encode()),
]
EXPECTED = [
    ("t.tar/a/0001.jpg", b"\xff\xd8" * 700, "the first"),
    ("t.tar/a/0002.png", b"second", "only json's"),
    ("t.tar/b/" + "n" * 150 + ".jpg", b"third", None),
    ("t.tar/b/日本.webp", b"", "ü"),
]


def tar(members: Iterable[Member], format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def special(name: str, kind: bytes, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "a.jpg"
    return info


def source(url: object, **about: Any) -> Source:
    return Source(str(url), "webdataset", **about)


def planned(url: object, **about: Any) -> tuple[Source, list[list[Piece]]]:
    done, shards = webdataset.plan_shards(source(url, **about), 10_000, SETTINGS)
    listed = list(shards)
    assert all(shard.rows is None and len(shard.pieces) == 1 for shard in listed)
    return done, [shard.pieces for shard in listed]


def read(source: Source, pieces: list[Piece], settings: Settings = SETTINGS) -> list[Row]:
    return list(webdataset.read(source, pieces, settings))


def rows(url: object, **about: Any) -> list[Row]:
    done, shards = planned(url, **about)
    return [row for shard in shards for row in read(done, shard)]


def find(source: Source, image_path: str) -> bytes:
    return webdataset.find_image(source, image_path, SETTINGS)


def summary(found: Iterable[Row]) -> list[tuple[Any, Any, Any]]:
    return [(row.columns["image_path"], row.image, row.text) for row in found]


def reread(path: Path, **about: Any) -> list[Row]:
    """The rows of a tar as it is now, with a plan that was made when it was whole."""
    done = source(path, **{"images": True, "texts": True, "storage": {"root": str(path.parent)}, **about})
    return read(done, [Piece(os.fsencode(path), size=path.stat().st_size)])


WHOLE = {format: tar(MEMBERS, format) for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)}
