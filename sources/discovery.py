"""The files that a source consists of: one file, a folder's, or those that a glob or a brace expression names."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TypeVar

from braceexpand import braceexpand

from clip_queue.sources import confinement, storage
from clip_queue.sources.left_out import PLAN_NAME, Passed, count, is_output, merge, outputs_among
from clip_queue.sources.looking import go_on
from clip_queue.sources.source import SourceError, shown
from clip_queue.sources.storage import FILE, FOLDER, LOCAL, display, reason, split

Found = Iterator[tuple[bytes, int]]
T = TypeVar("T")


def containers(
    url: str, suffixes: tuple[str, ...], also: tuple[str, ...] = (), passed: Passed | None = None
) -> list[tuple[bytes, int]]:
    """Path and size of each file of ``url``, sorted by path.

    A folder gives the files below it that end in one of ``suffixes``, in any case, and no hidden ones, and none of the
    outputs of runs in it. A glob gives the
    files it matches that end so; if none does, all that it matches. A file that is named is taken whatever its name,
    and a path that exists is itself even if its name has a ``*``, ``[`` or ``{``.

    Args:
        also: further suffixes to list, for the caller to refuse. The message about a missing file does not name them.
        passed: gets the files of folders that end otherwise.

    Raises:
        SourceError: a part of ``url`` is missing, holds nothing or cannot be listed; it says what was looked for.
    """
    protocol, path = split(url)
    lister = _Local() if protocol == LOCAL else _Remote(protocol)
    lister.refresh()
    wanted = tuple(suffix.lower().encode() for suffix in suffixes + also)
    found: dict[bytes, int] = {}
    for part in _parts(lister, path):
        try:
            files = dict(_listed(lister, part, wanted, passed))
        except OSError as error:
            raise SourceError(f"{part} cannot be listed: {reason(error)}") from error
        if not files:
            raise SourceError(f"{part}: no file there ends in {' or '.join(suffixes)}")
        found.update(files)
    deep = protocol == LOCAL and "**" in path  # it may match what is in an output, and not the plan there
    outputs = tuple(outputs_among(protocol, os.fsencode(_root(lister, path)), found, deep=deep))
    return sorted(each for each in found.items() if not each[0].startswith(outputs))


def root(url: str) -> str:
    """The folder that the names of a source's files are relative to: of a pattern, the part before its first sign."""
    protocol, path = split(url)
    return _root(_Local() if protocol == LOCAL else _Remote(protocol), path)


def _root(lister: _Local | _Remote, path: str) -> str:
    plain = _plain(lister, path)
    return plain.rstrip("/") if plain != path or lister.kind(path) == FOLDER else plain.rpartition("/")[0]


def name(folder: str, path: bytes) -> str:
    """A file's name relative to ``folder``, as text."""
    start = os.fsencode(folder) + b"/"
    return display(path[len(start) :] if path.startswith(start) else path.rpartition(b"/")[2])


def _plain(lister: _Local | _Remote, path: str) -> str:
    """The folders at the start of a path that are no pattern. A name that looks like a pattern but exists is none."""
    end = 0
    while end < len(path):
        after = (path.find("/", end + 1) + 1 or len(path) + 1) - 1
        if any(c in path[end:after] for c in "*?[{") and not lister.kind(path[:after]):
            break
        end = after
    return path[:end]


def _parts(lister: _Local | _Remote, path: str) -> Iterator[str]:
    """The alternatives of a brace expression."""
    plain = _plain(lister, path)
    pattern = path[len(plain) :]
    try:
        yield from (plain + part for part in braceexpand(pattern, escape=False)) if "{" in pattern else [path]
    except ValueError as error:
        raise SourceError(f"{shown(path)} does not exist, and its braces do not match") from error


def _listed(lister: _Local | _Remote, part: str, wanted: tuple[bytes, ...], passed: Passed | None) -> Found:
    """The files of a path or a glob."""
    kind = lister.kind(part)
    if kind == FILE:
        confinement.check(lister.protocol, part)
        yield os.fsencode(part), lister.size(part)
    elif kind == FOLDER:
        yield from _ending(lister.below(part), wanted, os.fsencode(part), passed)
    elif (plain := _plain(lister, part)) == part:
        raise SourceError(f"{part} does not exist")
    else:
        pattern = part[len(plain) :]
        matches = list(lister.matches(glob.escape(plain) + pattern))
        if not matches:
            raise SourceError(f"nothing matches {part}")
        files = [(os.fsencode(path), size) for path, kind, size in matches if kind == FILE]
        folders = [path for path, kind, _ in matches if kind == FOLDER and "**" not in pattern]  # else files match, too
        below = [lister.below(path) for path in folders if not is_output(lister.protocol, os.fsencode(path))]
        others = Passed()
        ending = list(_ending(chain(files, *below), wanted, os.fsencode(plain), others))
        if ending and passed is not None and "**" not in pattern:
            merge(passed, others)
        yield from ending or files


def _ending(files: Found, wanted: tuple[bytes, ...], folder: bytes = b"", passed: Passed | None = None) -> Found:
    for path, size in files:
        if path.lower().endswith(wanted):
            yield path, size
        elif passed is not None:
            count(passed, folder, path)


class _Local:
    """This machine's files. Links are followed; a folder is read once, by whichever path comes first, so loops end."""

    protocol = LOCAL

    def refresh(self) -> None: ...

    def kind(self, path: str) -> str | None:
        return FILE if os.path.isfile(path) else FOLDER if os.path.isdir(path) else None  # noqa: PTH112, PTH113

    def size(self, path: str) -> int:
        return os.path.getsize(path)  # noqa: PTH202

    def matches(self, pattern: str) -> Iterator[tuple[str, str | None, int]]:
        """Path, kind and size of each."""
        for path in _heard(glob.iglob(pattern, recursive=True)):  # noqa: PTH207
            confinement.check(LOCAL, path)
            yield path, self.kind(path), _size(os.fsencode(path))

    def below(self, folder: str) -> Found:
        top = os.fsencode(folder).rstrip(b"/") or b"/"
        waiting, seen = [top], set()
        while waiting:
            at = waiting.pop()
            try:
                found = os.stat(at)  # noqa: PTH116
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
                confinement.check(LOCAL, at)
                with os.scandir(at) as listed:
                    visible = [entry for entry in _heard(listed) if not entry.name.startswith(b".")]
                if PLAN_NAME in (entry.name for entry in visible) and at != top and is_output(LOCAL, at):
                    continue
            except OSError as error:
                raise SourceError(f"{display(at)} cannot be listed: {reason(error)}") from error
            folders = []
            for entry in _heard(visible):
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112
                    folders.append(entry.path)
                elif entry.is_symlink() or entry.is_file():  # a link that leads nowhere is listed as a missing file
                    if entry.is_symlink():
                        confinement.check(LOCAL, entry.path)
                    yield entry.path, _size(entry.path)
            waiting += sorted(folders, reverse=True)


def _heard(entries: Iterable[T]) -> Iterator[T]:
    """What a listing gives, as long as it may go on."""
    for entry in entries:
        go_on()
        yield entry


def _size(path: bytes) -> int:
    """Bytes of a regular file; -1 for any other, or if the system does not tell."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


class _Remote:
    """A store's files.

    A folder is listed page by page (:func:`clip_queue.sources.storage.entries`), and the files of a page that are not
    wanted are forgotten with it. For a glob, the client holds all that it lists.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol

    def refresh(self) -> None:
        storage.forget_listings(self.protocol)

    def kind(self, path: str) -> str | None:
        try:
            return storage.kind(self.protocol, path)
        except OSError as error:  # no credentials, no network
            raise SourceError(f"{path} cannot be looked at: {reason(error)}") from error

    def size(self, path: str) -> int:
        return storage.size(self.protocol, path)

    def matches(self, pattern: str) -> Iterator[tuple[str, str | None, int]]:
        for found in storage.matches(self.protocol, pattern):
            confinement.check(self.protocol, found[0])
            yield found

    def below(self, folder: str) -> Found:
        confinement.check(self.protocol, folder)
        waiting, base = [folder], len(os.fsencode(folder.rstrip("/")))
        while waiting:
            for path, kind, size in storage.entries(self.protocol, waiting.pop(), flat=True):
                if b"/." in path[base:]:
                    continue
                if kind == FOLDER:
                    waiting.append(os.fsdecode(path))
                else:
                    yield path, size
