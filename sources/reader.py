"""Reading a source of any format: which one it is, and its module's ``plan``, ``read`` and ``find``."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol, cast

from clip_queue.shared.errors import ClipError
from clip_queue.sources import storage as files
from clip_queue.sources.discovery import containers, reason
from clip_queue.sources.formats.image_files import SUFFIXES as PICTURES
from clip_queue.sources.formats.image_files import leads_to_folder
from clip_queue.sources.source import Format, Piece, Planned, Row, Source, SourceError

# By name: a format's packages are loaded when it is read.
FORMATS = {
    Format.FOLDER: "clip_queue.sources.formats.folder",
    Format.WEBDATASET: "clip_queue.sources.formats.webdataset",
    Format.PARQUET: "clip_queue.sources.formats.parquet",
    Format.TEXT: "clip_queue.sources.formats.text",
    Format.CSV: "clip_queue.sources.formats.csv",
    Format.JSONL: "clip_queue.sources.formats.jsonl",
}

SUFFIXES = {
    **{f".{suffix.decode()}": Format.FOLDER for suffix in PICTURES},
    **dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz", ".tzst"), Format.WEBDATASET),
    **dict.fromkeys((".parquet", ".parq", ".pq"), Format.PARQUET),
    **dict.fromkeys((".txt", ".text"), Format.TEXT),
    **dict.fromkeys((".csv", ".tsv"), Format.CSV),
    **dict.fromkeys((".jsonl", ".ndjson"), Format.JSONL),
}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".br", ".zip")  # of any of them: its module says what to do
SOUGHT = "a folder of pictures, or .tar, .parquet, .csv, .jsonl or .txt files"

LOOK = 500  # entries of a folder looked at to learn what it holds
LOOK_ALL = 5_000  # entries of all folders


class Module(Protocol):
    """What a format's module offers: :mod:`clip_queue.sources.source`."""

    def plan(self, source: Source, shard_size: int) -> Planned: ...

    def read(self, source: Source, pieces: list[Piece]) -> Iterator[Row]: ...

    def find(self, source: Source, image_path: str) -> bytes: ...


def plan(source: Source, shard_size: int) -> Planned:
    """The source completed, and its shards. Raises :class:`SourceError`."""
    return _module(source.format).plan(source, shard_size)


def read(source: Source, pieces: list[Piece]) -> Iterator[Row]:
    """The rows of a shard, in order. Raises :class:`SourceError` or :class:`OSError` if it cannot be read at all."""
    return _module(source.format).read(source, pieces)


def find(source: Source, image_path: str) -> bytes:
    """The encoded picture of the row that has this ``image_path``. Raises :class:`ClipError` or :class:`OSError`."""
    try:
        return _module(source.format).find(source, image_path)
    except (ClipError, OSError):
        raise
    except Exception as error:  # whatever a remote store's client raises
        raise OSError(f"{image_path} cannot be read: {reason(error)}") from error


def guess(url: str) -> Format:
    """The format of what is there.

    A file or a pattern tells by its suffix. A folder tells by what it holds, the nearest first: tars (img2dataset
    leaves a parquet beside each), else parquet, else pictures; only if there are none of these near, lines of JSON,
    CSV or text, which may as well lie about.

    Raises:
        SourceError: nothing is there, or it could be anything; the message says what was looked for.
    """
    protocol, path = files.split(url)
    kind = _kind(protocol, path)
    if kind == "directory":
        return _held(protocol, os.fsencode(path))
    found = _by_suffix(path.partition("?")[0] if protocol in ("http", "https") else path)
    if kind:
        if found:
            return found
        raise SourceError(f"{path} does not say what it is by its name ({SOUGHT}): say so with --format")
    if not any(sign in path for sign in "*?[{"):
        raise SourceError(f"{path} does not exist; looked for {SOUGHT}")
    if found is None:
        lines = tuple(suffix for suffix, kind in SUFFIXES.items() if kind != Format.FOLDER)
        found = _by_suffix(files.shown(containers(url, lines)[0][0]))
    if found == Format.FOLDER:
        raise SourceError(f"{path}: pictures are read by their folder, not by a pattern")
    if found is None:
        raise SourceError(f"{path} does not say what it names; looked for {SOUGHT}")
    return found


def _module(kind: Format) -> Module:
    return cast(Module, importlib.import_module(FORMATS[kind]))


def _by_suffix(name: str) -> Format | None:
    name = name.lower()
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def _kind(protocol: str, path: str) -> str | None:
    """``file``, ``directory`` or another kind; None: nothing is there."""
    try:
        if protocol == files.LOCAL:
            found = Path(path)
            return "directory" if found.is_dir() else "file" if found.is_file() else "other" if found.exists() else None
        kind: str = files.filesystem(protocol).info(path)["type"]
    except FileNotFoundError:
        return None
    except Exception as error:  # not allowed, no credentials, no network
        raise SourceError(f"{path} cannot be looked at: {reason(error)}") from error
    return kind


def _held(protocol: str, root: bytes) -> Format:
    """What a folder holds, by a look at the first entries of it and of those below, level by level."""
    waiting, left = deque([root]), LOOK_ALL
    lines: Format | None = None
    while waiting and left > 0:
        folder = waiting.popleft()
        try:
            names = dict(islice(_entries(protocol, folder), LOOK))
        except Exception as error:
            if folder == root:
                raise SourceError(f"{files.shown(root)} cannot be listed: {reason(error)}") from error
            continue
        left -= 1 + len(names)
        found = {_by_suffix(files.shown(name)) for name, is_folder in names.items() if not is_folder}
        if Format.WEBDATASET in found:
            return Format.WEBDATASET
        # img2dataset, told to write files, leaves a parquet of what it did beside each folder of pictures.
        beside = any(is_folder and name + b".parquet" in names for name, is_folder in names.items())
        if Format.PARQUET in found and not beside:
            return Format.PARQUET
        if Format.FOLDER in found:
            return Format.FOLDER
        lines = lines or next((kind for kind in (Format.JSONL, Format.CSV, Format.TEXT) if kind in found), None)
        waiting.extend(folder + b"/" + name for name in sorted(names) if names[name])
    return lines or Format.FOLDER


def _entries(protocol: str, folder: bytes) -> Iterator[tuple[bytes, bool]]:
    """Names in a folder, but for hidden ones, and whether each is a folder."""
    if protocol == files.LOCAL:
        with os.scandir(folder or b"/") as entries:
            for entry in entries:
                if not entry.name.startswith(b"."):
                    yield entry.name, leads_to_folder(entry)
        return
    for path, kind, _ in files.entries(protocol, os.fsdecode(folder)):
        name = path.rpartition(b"/")[2]
        if name and not name.startswith(b"."):
            yield name, kind == files.FOLDER
