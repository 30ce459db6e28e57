"""Images that a table holds: encoded, or as a reference, a path or a URL."""

from __future__ import annotations

import os
import posixpath
import re
from base64 import b64decode
from collections.abc import Callable, Iterable
from urllib.parse import unquote, urljoin

from clip_queue.shared.errors import BadImage
from clip_queue.shared.settings import Settings
from clip_queue.sources import url_fetcher
from clip_queue.sources.storage import LOCAL, read_bytes, split

SHORTEST = 60  # characters of an image in base64
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+=*\s*")  # a path has a dot; one to a JPEG's beginning, /9j/, may be one
_BEGINNINGS = ("/9j/", "_9j_", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK", "AAAA")
_AS_BYTES = (b"data:", *(beginning.encode() for beginning in _BEGINNINGS))
MEMBERS = ("bytes", "path", "url")  # of an object that stands for an image

NO_IMAGE = "The row has no image."


def image_in(value: object) -> object:
    """What of a JSON value is an image: of an object, as Hugging Face writes them, its bytes, else its path or URL."""
    if isinstance(value, dict):
        return next((value[name] for name in MEMBERS if value.get(name)), None)
    return value


def can_be_image(value: object) -> bool:
    """Whether a JSON value stands for an image, or is a list of such."""
    if isinstance(value, list):
        return any(can_be_image(each) for each in value if not isinstance(each, list))
    found = image_in(value)
    return isinstance(found, str) and bool(found.strip())


def load(value: object, base_protocol: str, base_folder: bytes, settings: Settings) -> bytes | Callable[[], bytes]:
    """A row's image: its bytes, or a function that loads it from the place that the value names.

    A text is an image in base64 or a data URI; an ``http(s)://`` URL, fetched under the rules that the API has; another
    URL, for fsspec; or a path, absolute or relative to ``base_folder``, in the file system of the table. Of a file at
    most ``max_image_bytes`` + 1 bytes are read: the caller sees by the length that it is too large. The function raises
    :class:`ClipError` or :class:`OSError`.

    Raises:
        BadImage: the row has no image, or the value names none.
    """
    if isinstance(value, bytes):
        text = value.decode() if value.startswith(_AS_BYTES) and value.isascii() else ""  # stored without its type
        return _decoded(text) if is_inline(text) else value
    if isinstance(value, str) and is_inline(value):
        return _decoded(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadImage.because(NO_IMAGE)
    if isinstance(value, list):
        raise BadImage.because("The row has a list of images, the first rows none: choose one, as column 'NAME[0]'.")
    if not isinstance(value, str):
        raise BadImage.because(f"The row's image is a {type(value).__name__}, no path and no URL.")
    if base_protocol in ("http", "https") and "://" not in value:
        value = urljoin(os.fsdecode(base_folder) + "/", value)
    if is_web(value):
        return lambda: url_fetcher.get(value, settings)
    return lambda: read_bytes(*_place(value, base_protocol, base_folder), settings.max_image_bytes)


def load_below(value: str, protocol: str, folders: Iterable[bytes], settings: Settings) -> bytes:
    """The image that a path or URL leads to; a path is looked for in each of ``folders`` until one has it.

    Raises:
        ClipError: the image cannot be loaded.
        OSError: it cannot be read.
    """
    missing: OSError = FileNotFoundError(f"{value} is in none of the tables' folders")
    for folder in folders:
        try:
            found = load(value, protocol, folder, settings)
            return found if isinstance(found, bytes) else found()
        except (FileNotFoundError, NotADirectoryError) as error:
            missing = error
    raise missing


def is_inline(value: str) -> bool:
    """Whether a text is an image, and not its name: a data URI, or the base64 of what begins as images do."""
    if value[:5].lower() == "data:":
        return True
    return len(value) >= SHORTEST and value.lstrip().startswith(_BEGINNINGS) and _BASE64.fullmatch(value) is not None


def _decoded(value: str) -> bytes:
    head, comma, rest = value.partition(",")
    if comma and not head.rstrip().lower().endswith(";base64"):
        raise BadImage.because("The row's image is a data URI that is not base64.")
    text = unquote(rest) if comma else value
    text = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise BadImage.because("The row's image is no base64.") from None


def is_web(value: str) -> bool:
    """Whether a value is an ``http(s)://`` URL."""
    return value.lstrip()[:8].lower().startswith(("http://", "https://"))


def redacted(value: str) -> str:
    """An image's path or URL for messages: a URL loses user, password and query, which may be a signature."""
    if not is_web(value):
        return value
    scheme, _, rest = value.strip().partition("://")
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _place(value: str, protocol: str, folder: bytes) -> tuple[str, bytes]:
    """Protocol and path of an image that is a file."""
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
    return protocol, posixpath.normpath(posixpath.join(folder, name))  # stores have no . and ..
