"""What has changed in a source since it was planned, as far as its files' names, sizes and times tell."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from clip_queue.sources.discovery import containers, name, root
from clip_queue.sources.formats.image_files import folder_order, walk
from clip_queue.sources.registry import FORMATS, IMAGE_FOLDER
from clip_queue.sources.source import Piece, Source
from clip_queue.sources.storage import LOCAL, split

NAMED = 3  # files of each kind of change that are named


class _File(NamedTuple):
    path: bytes
    size: int = -1  # bytes; -1: not known
    note: str = ""  # of an image: how its caption's name ends


@dataclass
class Changes:
    """How many files are new, gone, or changed, and the names of the first of each."""

    new: int = 0
    gone: int = 0
    changed: int = 0
    names: dict[str, list[str]] = field(default_factory=dict)

    def count(self, kind: str, title: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        named = self.names.setdefault(kind, [])
        if len(named) < NAMED:
            named.append(title)

    def __str__(self) -> str:
        """As ``2 files are new (a.png, b.png), 1 is gone (c.png)``; empty if nothing has changed."""
        parts: list[str] = []
        for kind, named in sorted(self.names.items(), key=lambda each: ("new", "changed", "gone").index(each[0])):
            total = getattr(self, kind)
            files = "" if parts else " file" if total == 1 else " files"
            more = ", …" if total > len(named) else ""
            verb = "" if kind == "changed" else "is " if total == 1 else "are "
            has = ("has " if total == 1 else "have ") if kind == "changed" else ""
            parts.append(f"{total}{files} {has}{verb}{kind} ({', '.join(named)}{more})")
        return ", ".join(parts)


def changes(source: Source, planned: Iterable[Piece], since: float) -> Changes:
    """Compare a source with the pieces that were planned of it, in their order. Neither list is held in memory whole.

    Args:
        since: seconds of the epoch; a file on this machine that was written later has changed. 0: not known.

    Raises:
        SourceError: the source cannot be listed.
    """
    protocol, path = split(source.url)
    is_folder = source.format == IMAGE_FOLDER
    key: Callable[[bytes], Any] = folder_order if is_folder else bytes
    if is_folder:
        top = os.fsencode(path).rstrip(b"/")
        now = (_File(found.path, note=found.caption) for found in walk(source.url, protocol, top) if not found.fault)
    else:
        spec = FORMATS[source.format]
        now = (_File(*each) for each in containers(source.url, spec.suffixes, spec.compressed))
    found, folder = Changes(), root(source.url)
    for then, here in _paired(_files(planned, notes=is_folder), now, key):
        both = then or here
        assert both is not None
        title = name(folder, both.path)
        if then is None:
            found.count("new", title)
        elif here is None:
            found.count("gone", title)
        elif _differ(then, here) or (since and protocol == LOCAL and _written(here.path) > since):
            found.count("changed", title)
    return found


def _files(planned: Iterable[Piece], *, notes: bool) -> Iterator[_File]:
    for path, pieces in groupby(planned, key=lambda piece: piece.path):
        first = next(pieces)
        if not notes:
            yield _File(path, first.size)
        elif not first.note or first.note.startswith("."):  # else it is a folder that could not be listed
            yield _File(path, note=first.note)


def _differ(then: _File, here: _File) -> bool:
    return then.note != here.note or (then.size != here.size and -1 not in (then.size, here.size))


def _paired(
    then: Iterator[_File], now: Iterator[_File], key: Callable[[bytes], Any]
) -> Iterator[tuple[_File | None, _File | None]]:
    """The files of both, in order; None where one of them lacks a file."""
    a, b = next(then, None), next(now, None)
    while a or b:
        if b is None or (a and key(a.path) < key(b.path)):
            yield a, None
            a = next(then, None)
        elif a is None or key(b.path) < key(a.path):
            yield None, b
            b = next(now, None)
        else:
            yield a, b
            a, b = next(then, None), next(now, None)


def _written(path: bytes) -> float:
    """When a file was last written, seconds of the epoch; 0 if the system does not tell."""
    try:
        return os.stat(path).st_mtime  # noqa: PTH116
    except OSError:
        return 0.0
