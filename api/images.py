"""The image of the wire: an object with ``type`` and ``value``, or a bare string; never a local path."""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from clip_queue.shared.errors import BadImage, BadInput, ClipError
from clip_queue.shared.settings import Settings

# As the original, any subtype; and unlike it, also with parameters, capitals and `svg+xml`.
_DATA_URI = re.compile(r"data:image/[^;,]*(;[^;,]*)*;base64", re.IGNORECASE)
_LONGEST_DATA_URI = 512  # characters before the comma
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_SPACE = b" \t\r\n\f\v"
_FROM_URLSAFE = bytes.maketrans(b"-_", b"+/")
# How the payload of common images begins: JPEG, PNG, GIF, WebP and other RIFF, BMP, TIFF.
_IMAGE_BEGINS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


class Url(str):
    """An image still to be fetched. Its query may be a signature: keep it out of messages and logs."""

    __slots__ = ()


class Fetches(Protocol):
    """What :func:`load_images` needs of :class:`clip_queue.shared.fetch.Fetcher`."""

    async def get(self, url: str) -> bytes: ...


def parse_image(value: object, max_bytes: int, field: str = "image") -> Url | bytes:
    """One image of a request: its encoded bytes, at most ``max_bytes``, or the URL they are at.

    ``field`` names the value in messages. BadInput if it has the wrong shape, BadImage if it cannot be an image.
    """
    if isinstance(value, str):
        return _bare(value, max_bytes)
    if not isinstance(value, Mapping):
        raise BadInput(f"{field} must be an image: an object with type and value, or a string of a URL or base64.")
    kind, payload = value.get("type"), value.get("value")
    if not isinstance(kind, str):
        raise BadInput(f"{field}.type must be a string: url or base64.")
    kind = kind.lower()
    if kind in ("numpy", "numpy_object"):
        raise BadImage.because("NumPy images are not accepted: pickled input can run code. Send base64 or a URL.")
    if kind not in ("url", "base64"):
        raise BadImage.because("Image declaration contains not recognised image type.")
    if not isinstance(payload, str):
        raise BadInput(f"{field}.value must be a string.")
    return Url(payload.strip()) if kind == "url" else _from_base64(payload, max_bytes)


async def load_images(
    values: Sequence[object], fetcher: Fetches, settings: Settings, field: str = "image"
) -> list[bytes]:
    """The encoded bytes of all images, in order; URLs are fetched at the same time.

    Everything is parsed before anything is fetched. The first error by index is raised, with ``index`` set where
    there is more than one image; what is still being fetched then is cancelled.
    """
    many = len(values) > 1
    parsed: list[Url | bytes] = []
    for index, value in enumerate(values):
        try:
            parsed.append(parse_image(value, settings.max_image_bytes, f"{field}[{index}]" if many else field))
        except ClipError as error:
            error.index = index if many else None
            raise
    fetches = {i: asyncio.create_task(fetcher.get(item)) for i, item in enumerate(parsed) if isinstance(item, Url)}
    try:
        images: list[bytes] = []
        for index, item in enumerate(parsed):  # awaited in order, so the first error by index comes first
            images.append(item if isinstance(item, bytes) else await _fetched(fetches[index], index if many else None))
        return images
    finally:
        for task in fetches.values():
            task.cancel()
        await asyncio.gather(*fetches.values(), return_exceptions=True)


async def _fetched(task: asyncio.Task[bytes], index: int | None) -> bytes:
    try:
        return await task
    except ClipError as error:
        error.index = index
        raise


def _bare(text: str, max_bytes: int) -> Url | bytes:
    """A bare string: a URL if it begins with http, else base64. No path: a name of a file is malformed base64."""
    start = text[:64].lstrip()[:4].lower()
    return Url(text.strip()) if start == "http" else _from_base64(text, max_bytes)


def _from_base64(text: str, max_bytes: int) -> bytes:
    """Decode base64, standard or URL-safe, with or without padding, spaces, line breaks and a data-URI prefix.

    The original drops every character that is not base64's own. That turns any text into some bytes, so here it
    is only done where an image comes out of it; what the original reads as an image is read here too.
    """
    raw = _without_prefix(text).encode("utf-8", "replace").translate(_FROM_URLSAFE, _SPACE)
    if len(raw.rstrip(b"=")) * 3 // 4 > max_bytes:
        raise BadImage.because(f"Image is larger than {max_bytes} bytes (setting max_image_bytes).")
    try:
        data = binascii.a2b_base64(raw + b"==")  # padding past the end is ignored, so it never misses
    except binascii.Error:
        raise BadImage.because("Malformed base64 input image.") from None
    if raw.translate(None, _BASE64) and not data.startswith(_IMAGE_BEGINS):
        raise BadImage.because("Malformed base64 input image.")
    if not data:
        raise BadImage.because("Empty image payload.")
    return data


def _without_prefix(text: str) -> str:
    """The text after a data-URI prefix of an image, or all of it."""
    head = text[:_LONGEST_DATA_URI]
    comma = head.find(",")
    return text[comma + 1 :] if comma > 0 and _DATA_URI.fullmatch(head[:comma].strip()) else text
