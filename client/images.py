"""An image as a program has it, to an image as it is sent: JSON, with base64 or a URL in it."""

from __future__ import annotations

import base64
import io
import os
import stat
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeGuard, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from clip_queue.client.errors import BadRequest

if TYPE_CHECKING:
    import PIL.Image

Image: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | IO[bytes] | NDArray[np.uint8] | PIL.Image.Image"

# What a PNG can hold as it is, and what becomes of other modes of Pillow.
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
_AS = {"I": "I;16", "PA": "RGBA"} | dict.fromkeys(("CMYK", "YCbCr", "HSV", "RGBX", "RGBa", "La"), "RGB")


def to_json(image: object, max_bytes: int) -> bytes:
    """An image of a request.

    Args:
        image: a path, an ``http(s)://`` URL that the server fetches, a data URI, the bytes of an encoded image, an
            open binary file with one in it, an array (height, width, 3) of uint8 in RGB, an image of Pillow, or a
            mapping with ``type`` and ``value``.
        max_bytes: a larger file is not sent.

    Raises:
        BadRequest: it is none of these, or cannot be read.
    """
    if isinstance(image, str):
        if image[:8].lower().startswith(("http://", "https://")):
            return orjson.dumps({"type": "url", "value": image})
        if image[:5].lower() == "data:":
            return orjson.dumps({"type": "base64", "value": image})
        return _base64(_file(Path(image), max_bytes))
    if isinstance(image, os.PathLike):
        return _base64(_file(Path(image), max_bytes))
    if isinstance(image, memoryview):
        return _base64(image.tobytes())  # its bytes may lie apart, as every second one does
    if isinstance(image, bytes | bytearray):
        return _base64(image)
    if isinstance(image, np.ndarray):
        return _base64(png(image))
    if isinstance(image, dict) and {"type", "value"} <= image.keys():
        return orjson.dumps(image)
    if _is_pillow(image):
        return _base64(_of_pillow(image))
    if _is_open(image) and isinstance(data := _rest(image, max_bytes + 1), bytes):
        return _base64(_checked(data, type(image).__name__, max_bytes))
    raise BadRequest(
        f"{type(image).__name__} is no image: give a path, a URL, bytes, a binary file, an array or Pillow's image.",
        code="bad_image",
    )


def is_one(images: object) -> bool:
    """Whether this is one image, and not several."""
    return (
        isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | dict)
        or (isinstance(images, np.ndarray) and images.ndim in (0, 2, 3))  # 0 is no image, but nothing of several
        or _is_pillow(images)
        or _is_open(images)  # iterating over it would give its lines
    )


def _is_pillow(image: object) -> TypeGuard[PIL.Image.Image]:
    """Pillow's images are known without importing it: who has one has imported it."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def _is_open(image: object) -> TypeGuard[IO[bytes]]:
    """Whether it can be read as an open file can."""
    return callable(getattr(image, "read", None))


def _base64(data: bytes | bytearray) -> bytes:
    return b'{"type":"base64","value":"' + base64.b64encode(data) + b'"}'


def _file(path: Path, max_bytes: int) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait
            raise BadRequest(f"{path} is no file.", code="bad_image")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadRequest(f"{str(path)[:200]!r} cannot be read: {reason}.", code="bad_image") from None
    return _checked(data, str(path), max_bytes)


def _rest(file: IO[bytes], most: int) -> object:
    """What an open file holds from where it is, no more than ``most`` bytes, unless it gives something else."""
    data, read = b"", cast("Callable[[int], Any]", file.read)
    try:
        while len(data) < most:
            part = read(most - len(data))
            if not isinstance(part, bytes):
                return part
            if not part:
                break
            data += part
    except Exception as error:  # of any library
        raise BadRequest(f"{type(file).__name__} cannot be read: {error}", code="bad_image") from error
    return data


def _checked(data: bytes, name: str, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise BadRequest(
            f"{name} is larger than {max_bytes} bytes, which is more than fits in a request.", code="too_large"
        )
    return data


def png(pixels: NDArray[Any]) -> bytes:
    """An array (height, width, 3), uint8, RGB, as a PNG: lossless, compressed quickly. Raises :class:`BadRequest`."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise BadRequest(
            f"An image as an array is (height, width, 3) of uint8 in RGB; this is {pixels.shape} of {pixels.dtype}.",
            code="bad_image",
        )
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(lines.data, 1)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big") for name, body in chunks
    )


def _of_pillow(image: PIL.Image.Image) -> bytes:
    from PIL import ImageOps

    out = io.BytesIO()
    try:
        image = ImageOps.exif_transpose(image)  # as the server does with a file
        if image.mode in _AS:
            image = image.convert(_AS[image.mode])
        if image.mode not in _PNG_MODES:
            raise BadRequest(f"An image of Pillow's mode {image.mode} cannot be sent: convert it.", code="bad_image")
        image.save(out, "PNG", compress_level=1)
    except BadRequest:
        raise
    except Exception as error:  # of a file that Pillow reads only now
        raise BadRequest(f"The image cannot be read: {error}", code="bad_image") from error
    return out.getvalue()
