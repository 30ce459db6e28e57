"""Which format a source has, by its name and by what a folder holds."""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from clip_queue.sources.discovery import containers
from clip_queue.sources.formats.image_files import leads_to_folder
from clip_queue.sources.left_out import PLAN_NAME, is_output
from clip_queue.sources.registry import FORMATS, IMAGE_FOLDER, PACKED, FormatSpec, sought
from clip_queue.sources.source import SourceError, shown
from clip_queue.sources.storage import FILE, FOLDER, LOCAL, display, entries, read_bytes, reason, split
from clip_queue.sources.storage import kind as remote_kind

SAMPLE_ENTRIES = 500  # entries of one folder that are looked at
MAX_ENTRIES = 5_000  # entries of all folders together

HEAD_BYTES = 2**16  # bytes of a table that are looked at
# Its column of images; a list of them needs JSON.
NAMES_FILES = {
    "csv": re.compile(rb"(?<!\w)(?:image_)?file_name(?!\w)"),
    "jsonl": re.compile(rb"(?<!\w)(?:image_)?file_names?(?!\w)"),
}

_BY_RANK = sorted(FORMATS.values(), key=lambda spec: spec.rank)


def detect(url: str, *, sample_entries: int = SAMPLE_ENTRIES, max_entries: int = MAX_ENTRIES) -> str:
    """The format of a source: a name in :data:`clip_queue.sources.registry.FORMATS`.

    The suffix tells the format of a file or a pattern. A folder's format is told by the files in it and below it, the
    nearest first: tars (img2dataset leaves a parquet beside each), else parquet, else images. Only if the folder holds
    none of these, lines of JSON, CSV or text count: such files often lie beside others. But a ``metadata.csv`` or
    ``metadata.jsonl`` at the top or beside the first images that has a column ``file_name`` is what they are read by.

    Args:
        sample_entries: how many entries of one folder are looked at.
        max_entries: how many entries of all folders are looked at.

    Raises:
        SourceError: the source does not exist, or its format cannot be told; the message says what was looked for.
    """
    protocol, path = split(url)
    kind = _kind(protocol, path)
    if kind == FOLDER:
        return _by_content(protocol, os.fsencode(path), sample_entries, max_entries)
    found = _by_suffix(path.partition("?")[0] if protocol in ("http", "https") else path)
    if kind:
        if found:
            return found.name
        raise SourceError(f"{shown(path)} does not say what it is by its name ({sought()}): say so with --format")
    if not any(sign in path for sign in "*?[{"):
        raise SourceError(f"{shown(path)} does not exist; looked for {sought()}")
    return found.name if found else _by_files(url, protocol, path)


def _by_files(url: str, protocol: str, path: str) -> str:
    """The format of what a pattern names: files of one format, or folders."""
    named = containers(url, tuple(suffix for spec in FORMATS.values() for suffix in spec.suffixes + spec.compressed))
    kinds: dict[str, bytes] = {}
    for file, _ in named:
        if spec := _by_suffix(display(file)):
            kinds.setdefault(spec.name, file)
    here = [spec for spec in _BY_RANK if spec.name in kinds]
    found = next((spec for spec in here if spec.decisive), next(iter(here), None))
    if found is None:
        raise SourceError(f"{shown(path)} does not say what it names; looked for {sought()}")
    if found.name == IMAGE_FOLDER and (format := _metadata(protocol, [kinds[IMAGE_FOLDER].rpartition(b"/")[0]])):
        found = FORMATS[format]
    for file, _ in containers(url, found.suffixes, found.compressed):
        if _by_suffix(display(file)) not in (None, found):  # it is named, so it would be read as one of them
            first = display(kinds[found.name])
            raise SourceError(f"{first} and {display(file)} are of two formats: embed them one after the other")
    return found.name


def _by_suffix(name: str) -> FormatSpec | None:
    name = name.lower()
    ends = {end: spec for spec in FORMATS.values() for end in spec.suffixes + spec.compressed}
    for packed in ("", *PACKED):
        if matching := [end for end in ends if name.removesuffix(packed).endswith(end)]:
            return ends[max(matching, key=len)]
    return None


def _kind(protocol: str, path: str) -> str | None:
    """:data:`FILE`, :data:`FOLDER` or another word; None: nothing has this path."""
    try:
        if protocol != LOCAL:
            return remote_kind(protocol, path)
        found = Path(path)
        return FOLDER if found.is_dir() else FILE if found.is_file() else "other" if found.exists() else None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # several paths as one
            return None
        raise SourceError(f"{shown(path)} cannot be looked at: {reason(error)}") from error


def _by_content(protocol: str, root: bytes, sample_entries: int, max_entries: int) -> str:
    """The format of a folder, from the first entries of it and of those below, level by level."""
    waiting, left = deque([root]), max_entries
    second_choice: FormatSpec | None = None
    while waiting and left > 0:
        folder = waiting.popleft()
        try:
            names = dict(islice(_entries(protocol, folder), sample_entries))
        except OSError as error:
            if folder == root:
                raise SourceError(f"{display(root)} cannot be listed: {reason(error)}") from error
            continue
        left -= 1 + len(names)
        if PLAN_NAME in names and folder != root and is_output(protocol, folder):
            continue
        found = {_by_suffix(display(name)) for name, is_folder in names.items() if not is_folder}
        here = [spec for spec in _BY_RANK if spec in found and not _is_sidecar(spec, names)]
        decisive = next((spec for spec in here if spec.decisive), None)
        if decisive and decisive.name == IMAGE_FOLDER:
            return _metadata(protocol, dict.fromkeys((root, folder))) or IMAGE_FOLDER
        if decisive:
            return decisive.name
        second_choice = second_choice or next(iter(here), None)
        waiting.extend(folder + b"/" + name for name in sorted(names) if names[name])
    return second_choice.name if second_choice else IMAGE_FOLDER


def _metadata(protocol: str, folders: Iterable[bytes]) -> str | None:
    """The format of the table that describes a folder's images, as Hugging Face's image folders have it; None: none."""
    for folder in folders:
        for format, names_files in NAMES_FILES.items():
            with suppress(OSError):
                head = read_bytes(protocol, folder + f"/metadata.{format}".encode(), HEAD_BYTES)
                if names_files.search(head.partition(b"\n")[0]):
                    return format
    return None


def _is_sidecar(spec: FormatSpec, names: dict[bytes, bool]) -> bool:
    """Whether a folder's files of this format describe the folders beside them."""
    sidecar = spec.sidecar.encode()
    return bool(sidecar) and any(is_folder and name + sidecar in names for name, is_folder in names.items())


def _entries(protocol: str, folder: bytes) -> Iterator[tuple[bytes, bool]]:
    """The names in a folder that are not hidden, and whether each is a folder."""
    if protocol == LOCAL:
        with os.scandir(folder or b"/") as found:
            for entry in found:
                if not entry.name.startswith(b"."):
                    yield entry.name, leads_to_folder(entry)
        return
    for path, kind, _ in entries(protocol, os.fsdecode(folder)):
        name = path.rpartition(b"/")[2]
        if name and not name.startswith(b"."):
            yield name, kind == FOLDER
