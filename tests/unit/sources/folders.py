"""Folders of images for tests, and their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clip_queue.shared.settings import Settings
from clip_queue.sources.formats import folder
from clip_queue.sources.source import Piece, Row, Shard, Source

SETTINGS = Settings()


def source(url: object, **about: Any) -> Source:
    return Source(str(url), "folder", **about)


def planned(url: object, shard_size: int = 100, **about: Any) -> tuple[Source, list[Shard]]:
    done, shards = folder.plan_shards(source(url, **about), shard_size, SETTINGS)
    return done, list(shards)


def pieces(url: object, **about: Any) -> tuple[Source, list[Piece]]:
    done, shards = planned(url, **about)
    return done, [piece for shard in shards for piece in shard.pieces]


def rows(url: object, settings: Settings = SETTINGS, **about: Any) -> list[Row]:
    return list(folder.read(*pieces(url, **about), settings))


def find(url: object, image_path: str) -> bytes:
    return folder.find_image(source(url), image_path, SETTINGS)


def paths(url: object, **about: Any) -> list[str]:
    return [row.columns["image_path"] for row in rows(url, **about)]


def loaded(row: Row) -> bytes:
    assert callable(row.image)
    return row.image()


def put(root: Path, *names: str) -> None:
    """Files that hold their own names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
