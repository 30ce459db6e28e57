"""Which files are pictures, and all that lie in and below a folder, here or where fsspec reaches.

The order is the same every time: a folder's pictures by the bytes of their names, then its folders the same way, each
with all it holds. Names that start with a dot are skipped. Links to folders are followed, but a folder is read once, by
whichever path comes first, so loops end; two links to a picture are two pictures. At no time is more listed than one
folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from clip_queue.sources import storage as files
from clip_queue.sources.discovery import reason
from clip_queue.sources.source import SourceError

SUFFIXES = frozenset(b"jpg jpeg jpe jfif png webp gif bmp tif tiff avif ppm jp2".split())
WANTED = " ".join(f".{suffix.decode()}" for suffix in sorted(SUFFIXES))


class Found(NamedTuple):
    """A picture and how its caption's name ends (empty: it has none); or a folder that could not be listed whole."""

    path: bytes
    caption: str = ""
    fault: str = ""  # why, where it is a folder


class _Listing(NamedTuple):
    """What a folder holds: pictures, each with how its caption's name ends; folders; why there may be more."""

    pictures: Iterable[tuple[bytes, str]]
    folders: list[bytes]
    fault: str = ""


def suffix(name: bytes) -> bytes:
    """What follows a name's last dot, in small letters."""
    stem, _, end = name.rpartition(b".")
    return end.lower() if stem else b""


def walk(url: str, protocol: str, root: bytes) -> Iterator[Found]:
    """What is found in a folder, or the one picture that ``root`` is; ``root`` has no slash at its end.

    Raises:
        SourceError: it is neither, or cannot be listed.
    """
    listed = _Local() if protocol == files.LOCAL else _Remote(protocol)
    if not listed.is_folder(root):
        if suffix(root) not in SUFFIXES or not listed.is_file(root):
            raise SourceError(f"{url}: there is no folder of that name, and no picture ({WANTED})")
        yield Found(root, ".txt" if listed.is_file(root.rpartition(b".")[0] + b".txt") else "")
        return
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        pictures, folders, fault = listed(folder)
        if fault and folder == root:
            raise SourceError(f"{url} cannot be listed: {fault}")
        for name, caption in pictures:
            yield Found(folder + b"/" + name, caption)
        if fault:
            yield Found(folder, fault=fault)
        waiting += [folder + b"/" + name for name in reversed(folders)]


def _listing(names: list[bytes], folders: list[bytes], fault: str = "") -> _Listing:
    """Sorts a folder's names, and finds its pictures' captions among them: nothing is asked of the disk for that."""
    captions: dict[bytes, str] = {}
    pictures = []
    for name in sorted(names):  # capitals come first, so .txt wins over .TXT
        stem, _, end = name.rpartition(b".")
        if end.lower() == b"txt":
            captions[stem] = sys.intern(f".{end.decode()}")
        else:
            pictures.append(name)
    with_captions = ((name, captions.get(name.rpartition(b".")[0], "")) for name in pictures)
    return _Listing(with_captions, sorted(folders), fault)


def _is_wanted(name: bytes) -> bool:
    end = suffix(name)
    return end in SUFFIXES or end == b"txt"


class _Local:
    """This machine's folders, each once. Paths are bytes, since a name need not be text."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()

    def __call__(self, folder: bytes) -> _Listing:
        names: list[bytes] = []
        folders: list[bytes] = []
        fault = ""
        try:
            at = os.stat(folder or b"/")  # noqa: PTH116
            if (at.st_dev, at.st_ino) in self._seen:
                return _Listing([], [])
            self._seen.add((at.st_dev, at.st_ino))
            with os.scandir(folder or b"/") as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(b"."):
                        continue
                    if leads_to_folder(entry):
                        folders.append(name)
                    # A link counts wherever it leads: one that dangles shows as a picture that cannot be read.
                    elif _is_wanted(name) and (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
                        names.append(name)
        except OSError as error:
            fault = reason(error)
        return _listing(names, folders, fault)

    def is_folder(self, path: bytes) -> bool:
        return os.path.isdir(path or b"/")  # noqa: PTH112

    def is_file(self, path: bytes) -> bool:
        return os.path.isfile(path)  # noqa: PTH113


def leads_to_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder that may not be entered
        return False


class _Remote:
    """A store's folders, listed page by page; of a folder the names are held."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self._store = files.filesystem(protocol)
        self._store.invalidate_cache()  # whatever has looked at the folder before left its whole listing there

    def __call__(self, folder: bytes) -> _Listing:
        names: list[bytes] = []
        folders: list[bytes] = []
        try:
            with files.as_os_error():
                for path, kind, _ in files.entries(self._protocol, os.fsdecode(folder)):
                    name = path[len(folder) + 1 :]
                    if not name or name.startswith(b"."):
                        continue
                    if kind == files.FOLDER:
                        folders.append(name)
                    elif _is_wanted(name):
                        names.append(name)
        except files.StoreAway as error:  # not this folder's fault: it would count as one row that fails
            raise SourceError(f"{files.shown(folder)} cannot be listed: {reason(error)}") from error
        except OSError as error:
            return _Listing([], [], reason(error))
        return _listing(names, folders)

    def is_folder(self, path: bytes) -> bool:
        return self._is(path, "directory")

    def is_file(self, path: bytes) -> bool:
        return self._is(path, "file")

    def _is(self, path: bytes, kind: str) -> bool:
        try:
            return bool(self._store.info(os.fsdecode(path))["type"] == kind)
        except FileNotFoundError:
            return False
        except Exception as error:  # no credentials, no network
            raise SourceError(f"{files.shown(path)} cannot be looked at: {reason(error)}") from error
