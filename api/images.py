"""An image in a request: an object with ``type`` and ``value``, or a string. A path of a file is never read."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping

import pybase64

from clip_queue.shared.errors import BadImage, BadInput
from clip_queue.shared.fetch import ImageUrl

# Of any type, with parameters and in capitals: browsers name an image `application/octet-stream`, or not at all.
_DATA_URI = re.compile(r"data:[^;,]*(;[^;,]*)*;base64", re.IGNORECASE)
_LONGEST_DATA_URI = 512  # characters before the comma
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_SPACE = b" \t\r\n\f\v"
_FROM_URLSAFE = bytes.maketrans(b"-_", b"+/")
# How the payload of common images begins: JPEG, PNG, GIF, WebP and other RIFF, BMP, TIFF.
_IMAGE_BEGINS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def parse_image(value: object, max_bytes: int, field: str = "image") -> bytes | ImageUrl:
    """One image of a request: its encoded bytes, at most ``max_bytes``, or the URL they are at.

    Args:
        field: the name of the value in error messages.

    Raises:
        BadInput: the value has the wrong shape.
        BadImage: it cannot be an image.
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
    return ImageUrl(payload.strip()) if kind == "url" else _from_base64(payload, max_bytes)


def _bare(text: str, max_bytes: int) -> bytes | ImageUrl:
    """A string without a type: a URL if it begins with http, else base64. The name of a file is malformed base64."""
    start = text[:64].lstrip()[:4].lower()
    return ImageUrl(text.strip()) if start == "http" else _from_base64(text, max_bytes)


def _from_base64(text: str, max_bytes: int) -> bytes:
    """Decode base64, standard or URL-safe, with or without padding, spaces, line breaks and a data-URI prefix.

    Roboflow Inference ignores every character outside the alphabet of base64, so it decodes any text to some bytes.
    Here such characters are ignored only if the result begins like an image: every image that Roboflow Inference
    reads is read here too.
    """
    text = _without_prefix(text)
    if len(text) * 3 // 4 <= max_bytes and (plain := _plain_base64(text)):
        return plain
    raw = text.encode("utf-8", "replace").translate(_FROM_URLSAFE, _SPACE)
    if len(raw.rstrip(b"=")) * 3 // 4 > max_bytes:
        raise BadImage.because(f"Image is larger than {max_bytes} bytes (setting max_image_bytes).")
    try:
        data = binascii.a2b_base64(raw + b"==")  # more padding than needed is ignored
    except binascii.Error:
        raise BadImage.because("Malformed base64 input image.") from None
    if raw.translate(None, _BASE64) and not data.startswith(_IMAGE_BEGINS):
        raise BadImage.because("Malformed base64 input image.")
    if not data:
        raise BadImage.because("Empty image payload.")
    return data


def _plain_base64(text: str) -> bytes:
    """What standard base64, with its padding and nothing else, encodes; empty if it is not that."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:  # binascii's own error is one
        return b""


def is_data_uri(text: str) -> bool:
    """Whether a text is a data URI: in base64, or of an image, which then is malformed."""
    head = text[:_LONGEST_DATA_URI].lstrip()
    if head[:5].lower() != "data:":
        return False
    prefix, comma, _ = head.partition(",")
    return bool(comma and _DATA_URI.fullmatch(prefix)) or head[5:11].lower() == "image/"


def _without_prefix(text: str) -> str:
    """The text after a data-URI prefix, or all of it."""
    head = text[:_LONGEST_DATA_URI]
    comma = head.find(",")
    return text[comma + 1 :] if comma > 0 and _DATA_URI.fullmatch(head[:comma].strip()) else text
