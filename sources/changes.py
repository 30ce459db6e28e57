"""What has changed in a source since it was planned, as far as its files' names, sizes and times tell."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from clip_queue.sources.discovery import containers, name, root
from clip_queue.sources.formats.image_files import folder_order, walk
from clip_queue.sources.registry import FORMATS, IMAGE_FOLDER
from clip_queue.sources.source import Piece, Source
from clip_queue.sources.storage import LOCAL, split

NEW, CHANGED, GONE, SAME = "new", "changed", "gone", "same"  # what has become of a file
NAMED = 3  # files of each kind of change that are named


class Located(NamedTuple):
    """A piece as it was planned, and its place in the plan: ``shard``, and which of its pieces it is."""

    piece: Piece
    shard: int = 0
    at: int = 0


@dataclass(slots=True)
class SourceFile:
    """A file of a source: as it is now, or as it was planned, with its pieces.

    ``size`` in bytes, -1: not known; ``caption``: how the name of an image's caption ends.
    """

    path: bytes
    size: int = -1
    caption: str = ""
    pieces: Sequence[Located] = ()


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
        for kind, named in sorted(self.names.items(), key=lambda each: (NEW, CHANGED, GONE).index(each[0])):
            total = getattr(self, kind)
            files = "" if parts else " file" if total == 1 else " files"
            more = ", …" if total > len(named) else ""
            verb = "" if kind == "changed" else "is " if total == 1 else "are "
            has = ("has " if total == 1 else "have ") if kind == "changed" else ""
            parts.append(f"{total}{files} {has}{verb}{kind} ({', '.join(named)}{more})")
        return ", ".join(parts)


def changes(source: Source, planned: Iterable[Piece], since: float) -> Changes:
    """What has changed since a source was planned, in numbers: :func:`compare`."""
    found, folder = Changes(), root(source.url)
    for kind, then, here in compare(source, map(Located, planned), since):
        file = then or here
        if kind != SAME and file:
            found.count(kind, name(folder, file.path))
    return found


def compare(
    source: Source, planned: Iterable[Located], since: float, faults: dict[bytes, str] | None = None
) -> Iterator[tuple[str, SourceFile | None, SourceFile | None]]:
    """Compare a source with the pieces that were planned of it, in the order of their files.

    Each file comes with what has become of it, as it was planned and as it is. Neither list is held in memory whole.

    Args:
        since: seconds of the epoch; a file on this machine, or an image's caption, that was written later has changed.
            0: not known.
        faults: gets the folders of images that cannot be listed, and why.

    Raises:
        SourceError: the source cannot be listed.
    """
    protocol, path = split(source.url)
    is_folder = source.format == IMAGE_FOLDER
    key: Callable[[bytes], Any] = folder_order if is_folder else bytes
    if is_folder:
        now = _images(source.url, protocol, os.fsencode(path).rstrip(b"/"), faults)
    else:
        spec = FORMATS[source.format]
        now = (SourceFile(*each) for each in containers(source.url, spec.suffixes, spec.compressed))
    for then, here in _paired(_files(planned, images=is_folder), now, key):
        if then is None:
            yield NEW, None, here
        elif here is None:
            yield GONE, then, None
        else:
            differ = _differ(then, here, since) if protocol == LOCAL else _differ(then, here)
            yield CHANGED if differ else SAME, then, here


def _images(url: str, protocol: str, top: bytes, faults: dict[bytes, str] | None) -> Iterator[SourceFile]:
    for found in walk(url, protocol, top):
        if not found.fault:
            yield SourceFile(found.path, found.size, found.caption)
        elif faults is not None:
            faults[found.path] = found.fault


def _files(planned: Iterable[Located], *, images: bool) -> Iterator[SourceFile]:
    for path, each in groupby(planned, key=lambda located: located.piece.path):
        pieces = list(each)
        first = pieces[0].piece
        if not images:
            yield SourceFile(path, first.size, pieces=pieces)
        elif not is_unlisted(first):
            yield SourceFile(path, first.size, first.note, pieces)


def is_unlisted(piece: Piece) -> bool:
    """Whether a piece of a folder of images stands for a folder that could not be listed."""
    return bool(piece.note) and not piece.note.startswith(".")


def _differ(then: SourceFile, here: SourceFile, since: float = 0) -> bool:
    """Whether a file has changed; ``since``: also if it was written later, which is asked of this machine."""
    if then.caption != here.caption:
        return True
    if not since:
        return then.size != here.size and -1 not in (then.size, here.size)
    size, written = _looked_at(here.path)
    if written > since or (then.size != size and -1 not in (then.size, size)):
        return True
    return bool(here.caption) and _looked_at(here.path.rpartition(b".")[0] + here.caption.encode())[1] > since


def _paired(
    then: Iterator[SourceFile], now: Iterator[SourceFile], key: Callable[[bytes], Any]
) -> Iterator[tuple[SourceFile | None, SourceFile | None]]:
    """The files of both, in order; None where one of them lacks a file."""
    a, b = next(then, None), next(now, None)
    while a or b:
        if a and b and a.path == b.path:
            yield a, b
            a, b = next(then, None), next(now, None)
        elif b is None or (a and key(a.path) < key(b.path)):
            yield a, None
            a = next(then, None)
        else:
            yield None, b
            b = next(now, None)


def _looked_at(path: bytes) -> tuple[int, float]:
    """A file's size, and when it was last written, seconds of the epoch; -1 and 0 if the system does not tell."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return -1, 0.0
    return found.st_size, found.st_mtime
