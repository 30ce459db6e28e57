"""The folders and URL prefixes in which runs that came over HTTP may read and write (settings ``bulk_…``).

A path is looked at twice. The API sees its text alone, since the files need not be on its machine
(:func:`check_source`, :func:`check_output`). The workers see where it really leads, through all links
(:class:`RealRoots`).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence

from clip_queue.shared.errors import BadInput, ClipError

LONGEST = 4096  # characters of a path or URL
_SIGNS = "*?[{"  # with them a path is a pattern
_RANGES = re.compile(r"\{\w+\.\.\w+(\.\.-?\w+)?\}")  # of braces, as {000..127}
_ESCAPED = re.compile(r"%(2e|2f|5c|00)", re.IGNORECASE)  # . / \ NUL, as a web server reads them


class OutsideRoots(ClipError):
    """A path or URL is in none of the places that the settings allow."""

    code, status = "outside_roots", 403


def root(text: str) -> str:
    """A root as the settings have it, without a slash at its end. Raises :class:`ValueError`."""
    if text.startswith("file:///"):
        text = text.removeprefix("file://")
    scheme, separator, rest = text.partition("://")
    is_url = separator and scheme.isidentifier()
    if not (text.startswith("/") or (is_url and rest.strip("/"))):
        raise ValueError(f"{text!r} is no absolute path and no URL with a bucket or host")
    if ".." in text.split("/") or any(sign in text for sign in _SIGNS) or (is_url and "::" in text):
        raise ValueError(f"{text!r} must name one folder, without .. and patterns")
    return text.rstrip("/") if is_url else _normal(text)


def check_source(url: str, roots: Sequence[str], what: str = "source") -> str:
    """A source's path, pattern or URL, as it is to be used.

    Args:
        roots: as :func:`root` makes them.
        what: the field's name, for messages.

    Raises:
        BadInput: it is none, or could lead elsewhere than it seems to.
        OutsideRoots: it is in none of ``roots``.
    """
    url = _plain(url, what)
    if not any(is_under(url, each) for each in roots):
        raise _outside(what, roots, "bulk_sources")
    return url


def check_output(url: str, roots: Sequence[str], sources: Iterable[str]) -> str:
    """An output's path or URL, as it is to be used; ``sources`` are those of the run, as :func:`check_source` made
    them. Raises as that does."""
    url = _plain(url, "output")
    if not any(is_under(url, each) and url != each for each in roots):
        if url in roots:
            raise OutsideRoots("Field 'output' must name a folder below the one that is allowed, not that itself.")
        raise _outside("output", roots, "bulk_outputs")
    if any(sign in url for sign in _SIGNS):
        raise BadInput("Field 'output' must name one folder: it may hold none of * ? [ {.")
    for source in sources:
        if is_under(url, folder_of(source)) or is_under(source, url):
            raise BadInput("Field 'output' lies in the source, or the source in it: choose another output.")
    return url


def folder_of(source: str) -> str:
    """The part of a source before its first pattern: what all its files lie in."""
    sign = next((i for i, c in enumerate(source) if c in _SIGNS), None)
    return source if sign is None else source[:sign].rpartition("/")[0] or "/"


def is_under(path: str, root: str) -> bool:
    """Whether a path or URL is ``root`` or below it, by its text: ``s3://bucket-b`` is not below ``s3://bucket``."""
    return path == root or path.startswith(root if root.endswith("/") else root + "/")


def _plain(url: str, what: str) -> str:
    """A path or URL without what could make it lead elsewhere. Raises :class:`BadInput`."""
    if not url or len(url) > LONGEST:
        raise BadInput(f"Field '{what}' must be a path or URL of 1 to {LONGEST} characters.")
    if "\0" in url:
        raise BadInput(f"Field '{what}' holds a NUL, which no path has.")
    if any("\ud800" <= c <= "\udfff" for c in url):
        raise BadInput(f"Field '{what}' holds half of a character (a lone surrogate).")
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    is_local = url.startswith("/")
    scheme, separator, rest = url.partition("://")
    if not is_local and "::" in url:
        raise BadInput(f"Field '{what}' must be one URL: chained ones (with ::) are not opened.")
    if not is_local and not (separator and scheme.isidentifier()):
        raise BadInput(f"Field '{what}' must be an absolute path, or a URL: the workers have no current folder.")
    if not is_local and ("://" in rest or _ESCAPED.search(rest)):
        raise BadInput(f"Field '{what}' must be a plain URL: no URL in it, and no escaped dots or slashes.")
    parts = re.split(r"[/{},]" if "{" in url else "/", _RANGES.sub("", url))
    if ".." in parts or ("{" in url and "." in parts):
        raise BadInput(f"Field '{what}' may hold no '..': name the folder itself.")
    return _normal(url) if is_local else url.rstrip("/")


def _normal(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def _outside(what: str, roots: Sequence[str], setting: str) -> OutsideRoots:
    allowed = ", ".join(roots)
    return OutsideRoots(f"Field '{what}' must lie in one of: {allowed} (setting {setting}).")


class RealRoots:
    """Roots as they are on this machine, with all links followed; for many threads."""

    def __init__(self, roots: Iterable[str]) -> None:
        self._urls = [each for each in roots if not each.startswith("/")]
        self._folders = [os.path.realpath(each) for each in roots if each.startswith("/")]

    def hold(self, path: str | bytes) -> bool:
        """Whether a file or folder of this machine really lies in one of them."""
        return self.hold_real(os.path.realpath(os.fsdecode(path)))

    def hold_open(self, descriptor: int, path: str | bytes) -> bool:
        """The same of a file that is open: whatever ``path`` leads to by now, this one is read."""
        try:
            return self.hold_real(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        except OSError:  # no Linux
            return self.hold(path)

    def hold_real(self, path: str) -> bool:
        """Whether a path without links lies in one of them."""
        return any(is_under(path, folder) for folder in self._folders)

    def hold_url(self, url: str) -> bool:
        """Whether a URL of a store lies in one of them, by its text."""
        return ".." not in url.split("/") and any(is_under(url, each) for each in self._urls)
