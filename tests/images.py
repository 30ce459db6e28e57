"""Images that are made for tests."""

from __future__ import annotations

import base64
import io
import zlib
from functools import cache

import numpy as np
from PIL import Image


def noise_image(seed: int = 0, size: tuple[int, int] = (96, 80), format: str = "PNG", mode: str = "RGB") -> bytes:
    """An encoded image of coloured noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
    return encoded(image, format)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """An image in a format of Pillow, which also takes the options."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def base64_image(data: bytes) -> dict[str, str]:
    """An image as it is sent to the API."""
    return {"type": "base64", "value": base64.b64encode(data).decode()}


@cache
def bomb(width: int = 13_300, height: int = 13_300) -> bytes:
    """A PNG of ``width`` × ``height`` black pixels in a few hundred KiB: 177 megapixels by default."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    rows = zlib.compressobj(9)
    line = bytes(1 + 3 * width)
    data = b"".join(rows.compress(line) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
