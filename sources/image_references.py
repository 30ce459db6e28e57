"""Pictures that a table holds: encoded, or where they are, a path or a URL."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable
from urllib.parse import urljoin

from clip_queue.shared.errors import BadImage
from clip_queue.sources import url_fetcher as fetch
from clip_queue.sources.storage import LOCAL, read_bytes, split

NONE = "The row has no image."


def load(value: object, base_protocol: str, base_folder: bytes, limit: int) -> bytes | Callable[[], bytes]:
    """A row's picture: its bytes as they are, or what gets them from where the value says.

    A text is an ``http(s)://`` URL, fetched as the API fetches such; another URL, for fsspec; or a path, absolute or
    relative to ``base_folder``, in the file system of the table itself. Of a file at most ``limit`` + 1 bytes are read,
    so that too large shows. What is returned raises :class:`ClipError` or :class:`OSError`.

    Raises:
        BadImage: there is no picture, or the value is none.
    """
    if isinstance(value, bytes):
        return value
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadImage.because(NONE)
    if not isinstance(value, str):
        raise BadImage.because(f"The row's image is a {type(value).__name__}, no path and no URL.")
    if base_protocol in ("http", "https") and "://" not in value:
        value = urljoin(os.fsdecode(base_folder) + "/", value)
    if is_web(value):
        return lambda: fetch.get(value)
    return lambda: read_bytes(*_place(value, base_protocol, base_folder), limit)


def load_below(value: str, protocol: str, folders: Iterable[bytes], limit: int) -> bytes:
    """The picture that a path or URL leads to, where the table is one of several: in the first folder that has it.

    Raises:
        ClipError: it cannot be had.
        OSError: likewise.
    """
    missing: OSError = FileNotFoundError(f"{value} is in none of the tables' folders")
    for folder in folders:
        try:
            found = load(value, protocol, folder, limit)
            return found if isinstance(found, bytes) else found()
        except (FileNotFoundError, NotADirectoryError) as error:
            missing = error
    raise missing


def is_web(value: str) -> bool:
    return value.lstrip()[:8].lower().startswith(("http://", "https://"))


def said(value: str) -> str:
    """A picture's place as it may be shown: of a URL neither user nor password nor query, which may be a signature."""
    if not is_web(value):
        return value
    scheme, _, rest = value.strip().partition("://")
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _place(value: str, protocol: str, folder: bytes) -> tuple[str, bytes]:
    """Protocol and path of a picture that is a file."""
    if "\0" in value:
        raise BadImage.because("The row's image is no path: there is a NUL in it.")
    scheme, separator, _ = value.partition("://")
    if separator and scheme.isidentifier():
        try:
            at, path = split(value)
            return at, os.fsencode(path)
        except UnicodeError:
            raise BadImage.because("The row's image is no URL.") from None
    try:
        name = value.encode()
    except UnicodeEncodeError:
        raise BadImage.because("The row's image is no path.") from None
    if protocol == LOCAL:
        return protocol, os.path.join(folder, name)  # noqa: PTH118
    return protocol, posixpath.normpath(posixpath.join(folder, name))  # a store has no . and .. of its own
