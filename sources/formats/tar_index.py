"""Where the images of a tar are, so that one of them is found without reading the rest."""

from __future__ import annotations

import contextlib
from functools import lru_cache

from clip_queue.sources.formats.archives import archive_of
from clip_queue.sources.formats.image_files import SUFFIXES, suffix
from clip_queue.sources.formats.samples import is_plain, raw_name
from clip_queue.sources.formats.tars import BrokenTar
from clip_queue.sources.storage import display, opened


@lru_cache(maxsize=16)
def index_of(protocol: str, path: bytes, column: str | None = None) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """Start and size in bytes of a tar's images, by name as text: the first of each name, before the tar breaks; and
    the names that several have. ``column`` is a suffix that images have as well."""
    end = f".{column}".lower().encode() if column else None
    found: dict[str, tuple[int, int]] = {}
    doubled: set[str] = set()
    with opened(protocol, path) as (file, size), contextlib.suppress(BrokenTar):
        for member in archive_of(file, size).members():
            raw = raw_name(member)
            if is_plain(member) and (suffix(raw) in SUFFIXES or (end and raw.lower().endswith(end))):
                name = display(raw)
                if name in found:
                    doubled.add(name)
                else:
                    found[name] = member.offset_data, member.size
    return found, doubled


def forget_files() -> None:
    """Look at the tars again when an image is asked for next."""
    index_of.cache_clear()
