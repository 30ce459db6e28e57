"""Confinement: a run that came over HTTP reads nothing but what lies in the places that the settings allow.

The process that plans such a run does nothing else, so it is confined as a whole (:func:`of_process`): each file that
it opens and each folder that it lists is looked at. A worker does shards of other runs as well: there
:attr:`clip_queue.sources.source.Source.within` says what a shard's images, captions and containers must lie in.
"""

from __future__ import annotations

import os
from functools import lru_cache

from clip_queue.shared.roots import RealRoots
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import Piece, Source, SourceError

LOCAL = "file"  # as in clip_queue.sources.storage, which stands on this module
WHY = "leads out of the places that may be read (setting bulk_sources)"

_process: RealRoots | None = None


class LeadsOutside(SourceError):
    """A file or folder lies elsewhere than may be read."""

    code = "leads_outside"


@lru_cache(maxsize=64)
def roots_of(within: tuple[str, ...]) -> RealRoots:
    return RealRoots(within)


def of_process(settings: Settings) -> None:
    """From now on this process reads nothing outside of ``bulk_sources``."""
    confine(tuple(settings.bulk_sources))


def confine(within: tuple[str, ...]) -> None:
    """From now on this process reads nothing outside of these folders and URLs."""
    global _process
    _process = roots_of(within)


def check(protocol: str, path: str | bytes, roots: RealRoots | None = None) -> None:
    """Check a file or folder before it is looked at.

    Args:
        roots: what it must lie in; None: whatever this process is confined to, if it is.

    Raises:
        LeadsOutside: it lies elsewhere.
    """
    roots = roots or _process
    if roots and not _holds(roots, protocol, os.fsdecode(path)):
        raise LeadsOutside(f"{shown(path)} {WHY}")


def check_open(descriptor: int, path: str | bytes, roots: RealRoots | None = None) -> None:
    """The same for a file of this machine that is open."""
    roots = roots or _process
    if roots and not roots.hold_open(descriptor, path):
        raise LeadsOutside(f"{shown(path)} {WHY}")


def check_containers(source: Source, pieces: list[Piece]) -> None:
    """Check the containers of a shard. Raises :class:`LeadsOutside`."""
    if source.within is None:
        return
    protocol = source.url.partition("://")[0] if "://" in source.url and not source.url.startswith("/") else LOCAL
    for path in dict.fromkeys(piece.path for piece in pieces):
        check(protocol, path, roots_of(source.within))


def roots_in(source: Source) -> RealRoots | None:
    """What all that is read of a source must lie in; None: anywhere."""
    return None if source.within is None else roots_of(source.within)


def shown(path: str | bytes) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _holds(roots: RealRoots, protocol: str, path: str) -> bool:
    if protocol == LOCAL:
        return roots.hold(path)
    return roots.hold_url(path if "://" in path else f"{protocol}://{path.lstrip('/')}")
