"""Which formats are decoded, and how an error names those that stay closed."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from clip_queue.shared.errors import BadImage
from clip_queue.sources.registry import FORMATS as SOURCES
from clip_queue.worker.inference.decode import FORMATS, decode

# 48 × 32 pixels as stored, to be turned by a quarter: red, blue above left, yellow below right as stored.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAPkAAgAAAAAC5QABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAADAAAAABAAAAIAAAAAH////wAAAAAv///+AAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEA"
    "AQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAASVtZGF0AAAA9SgBrwT4QTGZv/js/+R+y+n/+8G8o8Tvc3Jw//gA"
    "fN/RN6dweHHEc63qvTZ8O1JWSMO8lM3nb+rz5r7//yXmq32JKs37//gedY9jtU2/ZuyX9OGX+Vvfdf7YZjyt3ld3ZSWnOLV4Gpd1"
    "EhEbDWKm+ss21OrrKwaEaSX2llWr+Hp6EJRJ4Lw7ZFeYzQhN0NbFSLD4OgEs13Z0233F9V/ZT12QGtV+GZ+fz+R+MFFd3sQ5L+L6"
    "TF7SKEeLAgpxH6+5iuEvj8tL+fmn7zxgTBJbP/uP/i3j+hKwIJRmHdIvjtGyWsEDPrE41b+Syl/B9/XXef/BT0CvAAAABkV4aWYA"
    "AE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)


def pixels(data: bytes) -> np.ndarray:
    return decode(data, np.asarray, max_bytes=1 << 26, max_pixels=1 << 24)


def test_heic_is_decoded_and_upright() -> None:
    pytest.importorskip("pi_heif")
    image = pixels(HEIC).astype(int)
    assert image.shape == (48, 32, 3)
    for (y, x), colour in {(6, 8): (200, 30, 40), (6, 24): (20, 60, 210), (42, 8): (240, 230, 20)}.items():
        assert np.abs(image[y, x] - colour).max() < 30, (y, x)


def test_a_broken_heic_is_refused() -> None:
    pytest.importorskip("pi_heif")
    with pytest.raises(BadImage, match="Data is not image"):
        pixels(HEIC[:300])


@pytest.mark.skipif("HEIF" in FORMATS, reason="pi-heif is installed")
def test_heic_is_named_where_it_cannot_be_decoded() -> None:
    with pytest.raises(BadImage, match="HEIC is not supported"):
        pixels(HEIC)


NAMED = {
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "SVG ": b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg>',
    "PSD": b"8BPS\0\1" + bytes(20),
    "PDF": b"%PDF-1.7\n",
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "JPEG-LS": b"\xff\xd8\xff\xf7\0\x0b\x08" + bytes(20),
    "QOI": b"qoif" + bytes(20),
    "PAM": b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nENDHDR\n\0",
    "PFM": b"PF\n1 1\n-1.0\n" + bytes(12),
    "ICNS": b"icns" + bytes(20),
    "CR2": b"II*\0\x10\0\0\0CR\2\0",
    "DICOM": bytes(128) + b"DICM",
    "Video": b"\0\0\0\x18ftypisom",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_format_that_stays_closed_is_named(name: str) -> None:
    with pytest.raises(BadImage, match=f"Cause: {name.strip()} is not supported"):
        pixels(NAMED[name])


@pytest.mark.parametrize(
    "data", [b"<html><svg>", b"text", b"\0" * 200, b"\xff\xd8\xff", b"\0\0\0\x18ftypxxxx", b"<?xml?>"]
)
def test_what_is_no_image_at_all_is_told_so(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"^Could not load input image. Cause: Data is not image.$"):
        pixels(data)


def test_bulk_takes_files_of_all_of_them() -> None:
    assert {".heic", ".heif", ".avif", ".mpo"} <= set(SOURCES["folder"].suffixes)
