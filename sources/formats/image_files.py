"""Which files are images, and all images in and below a folder, on this machine or in a store.

The order is the same every time: first a folder's images by the bytes of their names, then its folders in the same
order, each with all that it holds. Names that start with a dot are skipped. Links to folders are followed, but a folder
is read once, by whichever path comes first, so loops end. Two links to an image are two images. No more than one
folder's names are in memory at a time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from clip_queue.sources import confinement, storage
from clip_queue.sources.discovery import containers
from clip_queue.sources.left_out import PLAN_NAME, Passed, count, is_output, merge
from clip_queue.sources.looking import go_on
from clip_queue.sources.registry import FORMATS, IMAGE_FOLDER
from clip_queue.sources.source import SourceError, shown
from clip_queue.sources.storage import FILE, FOLDER, LOCAL, StoreAway, display, reason

SUFFIXES = frozenset(suffix[1:].encode() for suffix in FORMATS[IMAGE_FOLDER].suffixes)
WANTED = " ".join(f".{suffix.decode()}" for suffix in sorted(SUFFIXES))


class Found(NamedTuple):
    """An image and how its caption's name ends (empty: it has none); or a folder that could not be listed whole."""

    path: bytes
    caption: str = ""
    fault: str = ""  # of a folder: why it could not be listed
    size: int = -1  # bytes, where the listing tells (that of a store)


class _Listing(NamedTuple):
    """What a folder holds: images, each with how its caption's name ends; folders; why there may be more; and files
    that are neither images nor their captions."""

    images: Iterable[tuple[bytes, str]]
    folders: list[bytes]
    fault: str = ""
    others: Sequence[bytes] = ()
    sizes: Mapping[bytes, int] = {}  # of images, where they are known


def suffix(name: bytes) -> bytes:
    """The part of a name after its last dot, in small letters; empty if it has none."""
    stem, _, end = name.rpartition(b".")
    return end.lower() if stem else b""


def walk(url: str, protocol: str, root: bytes, passed: Passed | None = None) -> Iterator[Found]:
    """All images of a source, the one image that ``root`` is, or those that a pattern names. Outputs of runs in it are
    passed over.

    Args:
        url: the source, for messages.
        root: its path, without a slash at the end.
        passed: gets the files that are neither images nor captions of one.

    Raises:
        SourceError: it is neither a folder nor an image, or it cannot be listed.
    """
    listed = _Local() if protocol == LOCAL else _Remote(protocol)
    if is_pattern(protocol, root):
        yield from _matching(url, protocol, passed)
        return
    if not listed.is_folder(root):
        if suffix(root) not in SUFFIXES or not listed.is_file(root):
            raise SourceError(f"{shown(url)}: there is no folder of that name, and no image ({WANTED})")
        yield Found(root, ".txt" if listed.is_file(root.rpartition(b".")[0] + b".txt") else "")
        return
    waiting = [root]
    while waiting:
        go_on()
        folder = waiting.pop()
        images, folders, fault, others, sizes = listed(folder)
        if PLAN_NAME in others and folder != root and is_output(protocol, folder):
            continue
        if passed is not None:
            for name in others:
                count(passed, root, folder + b"/" + name)
        if fault and folder == root:
            raise SourceError(f"{shown(url)} cannot be listed: {fault}")
        for name, caption in images:
            yield Found(folder + b"/" + name, caption, size=sizes.get(name, -1))
        if fault:
            yield Found(folder, fault=fault)
        waiting += [folder + b"/" + name for name in reversed(folders)]


def is_pattern(protocol: str, path: bytes) -> bool:
    """Whether a source's path names images by a glob or a brace expression: several paths become one."""
    if not any(sign in path for sign in b"*?[{"):
        return False
    listed = _Local() if protocol == LOCAL else _Remote(protocol)
    return not listed.is_folder(path) and not listed.is_file(path)


def folder_order(path: bytes) -> list[tuple[bool, bytes]]:
    """The key of :func:`walk`'s order: a folder's files come before its folders."""
    *folders, last = path.split(b"/")
    return [*((True, folder) for folder in folders), (False, last)]


def _matching(url: str, protocol: str, passed: Passed | None) -> Iterator[Found]:
    """The images that a pattern names, and those in the folders that it names."""
    others = Passed()
    found = sorted(
        (path for path, _ in containers(url, FORMATS[IMAGE_FOLDER].suffixes, passed=others)), key=folder_order
    )
    others.pop(".txt", None)
    if passed is not None:
        merge(passed, others)
    for folder, paths in groupby(found, key=lambda path: path.rpartition(b"/")[0]):
        listed = _Local() if protocol == LOCAL else _Remote(protocol)
        captions = dict(listed(folder).images)
        yield from (Found(path, captions.get(path.rpartition(b"/")[2], "")) for path in paths)


def _listing(names: list[bytes], folders: list[bytes], fault: str = "") -> _Listing:
    """Sort a folder's names and find its images' captions among them, without asking the disk."""
    captions: dict[bytes, str] = {}
    images, others = [], []
    for name in sorted(names):  # capitals come first, so .txt wins over .TXT
        stem, _, end = name.rpartition(b".")
        if suffix(name) == b"txt":
            captions[stem] = sys.intern(f".{end.decode()}")
        elif suffix(name) in SUFFIXES:
            images.append(name)
        else:
            others.append(name)
    with_captions = ((name, captions.get(name.rpartition(b".")[0], "")) for name in images)
    if captions:
        stems = {name.rpartition(b".")[0] for name in images}
        others += [stem + end.encode() for stem, end in captions.items() if stem not in stems]
    return _Listing(with_captions, sorted(folders), fault, others)


class _Local:
    """This machine's folders, each once. Paths are bytes, because a name need not be text."""

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
            confinement.check(LOCAL, folder or b"/")
            with os.scandir(folder or b"/") as entries:
                for entry in entries:
                    go_on()
                    name = entry.name
                    if name.startswith(b"."):
                        continue
                    if leads_to_folder(entry):
                        folders.append(name)
                    # A link counts wherever it leads: one that dangles is an image that cannot be read.
                    elif entry.is_file(follow_symlinks=False):
                        names.append(name)
                    elif entry.is_symlink():
                        confinement.check(LOCAL, entry.path)
                        names.append(name)
        except OSError as error:
            fault = reason(error)
        return _listing(names, folders, fault)

    def is_folder(self, path: bytes) -> bool:
        return os.path.isdir(path or b"/")  # noqa: PTH112

    def is_file(self, path: bytes) -> bool:
        return os.path.isfile(path)  # noqa: PTH113


def leads_to_folder(entry: os.DirEntry[bytes]) -> bool:
    """Whether a folder's entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder that may not be entered
        return False


class _Remote:
    """A store's folders, listed page by page; the names of one folder are held."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        storage.forget_listings(protocol)  # an earlier look at the folder left its whole listing with the client

    def __call__(self, folder: bytes) -> _Listing:
        confinement.check(self._protocol, folder)
        names: list[bytes] = []
        folders: list[bytes] = []
        sizes: dict[bytes, int] = {}
        try:
            for path, kind, size in storage.entries(self._protocol, os.fsdecode(folder)):
                name = path[len(folder) + 1 :]
                if not name or name.startswith(b"."):
                    continue
                if kind == FOLDER:
                    folders.append(name)
                else:
                    names.append(name)
                    if suffix(name) in SUFFIXES:
                        sizes[name] = size
        except StoreAway as error:  # not this folder's fault: it would count as one row that fails
            raise SourceError(f"{display(folder)} cannot be listed: {reason(error)}") from error
        except OSError as error:
            return _Listing([], [], reason(error))
        return _listing(names, folders)._replace(sizes=sizes)

    def is_folder(self, path: bytes) -> bool:
        return self._kind(path) == FOLDER

    def is_file(self, path: bytes) -> bool:
        return self._kind(path) == FILE

    def _kind(self, path: bytes) -> str | None:
        try:
            return storage.kind(self._protocol, os.fsdecode(path))
        except OSError as error:  # no credentials, no network
            raise SourceError(f"{display(path)} cannot be looked at: {reason(error)}") from error
