"""Outputs of ``embed`` that the service opens for search: their names, and the errors of it.

The API embeds the query and asks a process of its own (``clip_queue.bulk.search.service``) for the rows that are
nearest. Both know this module, and what they say to each other is :data:`HEAD` and msgpack.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from pathlib import Path

from clip_queue.shared.errors import ClipError, QueueFull

HEAD = struct.Struct("!I")  # bytes of a message, before each
MAX_LIMIT = 100  # hits of a page
MAX_HITS = 1000  # hits of a query, on all its pages
DEFAULT_LIMIT = 24  # hits of a page

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class UnknownSearch(ClipError):
    code, status = "unknown_search", 404


class UnknownRow(ClipError):
    code, status = "unknown_row", 404


class NoPicture(ClipError):
    """A row's picture is not served; the message says why."""

    code, status = "no_picture", 404


class OtherModel(ClipError):
    """No worker has the model that made the vectors, or not as it was then."""

    code, status = "other_model", 409


class SearchFull(QueueFull):
    """Too many searches wait for a process."""

    code = "search_full"


def parse_searches(texts: Iterable[str]) -> dict[str, Path]:
    """The folder of each output by the name that it is searched by, from a setting: each ``NAME=FOLDER``.

    Raises:
        ValueError: one is something else. The message says what to write.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, separator, folder = text.partition("=")
        name, folder = name.strip(), folder.strip()
        if not separator or not folder:
            raise ValueError(f"{text[:160]!r} must be NAME=FOLDER, as in photos=/data/vectors")
        if not _NAME.fullmatch(name):
            raise ValueError(f"name {name[:80]!r} must be of letters, digits, '.', '_' and '-', 64 at most")
        if name in found:
            raise ValueError(f"the name {name!r} stands there twice")
        if "://" in folder:
            raise ValueError(f"{name}: {folder[:160]!r} must be a folder of this machine, no URL")
        try:
            found[name] = Path(folder).expanduser().absolute()
        except RuntimeError:
            raise ValueError(f"{name}: the user after '~' is not known here") from None
    return found
