"""Metadata never refuse pixels: whatever stands in EXIF, profiles, texts or checksums of what is no pixel."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference.decode import decode
from tests.images import encoded, noise_image

IMAGE = Image.open(io.BytesIO(noise_image(3, size=(72, 48))))
TYPES = range(14)  # of EXIF's values: twelve, and two that are none
ODD_TAGS = (0x100, 0x103, 0x10F, 0x11A, 0x132, 0x8769, 0x8825, 0x9286, 0xEA1C)
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def pixels(data: bytes) -> np.ndarray:
    return decode(data, np.asarray, max_bytes=1 << 26, max_pixels=1 << 24)


def plain(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def exif(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """A TIFF block of entries (tag, type, count, four bytes)."""
    packed = b"".join(struct.pack(order + "HHL4s", *entry) for entry in sorted(entries))
    start = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    return start + struct.pack(order + "H", len(entries)) + packed + b"\0\0\0\0"


def turned(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return 0x112, 3, 1, struct.pack(order + "HH", value, 0)


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(name: bytes, body: bytes, *, wrong: bool = False) -> bytes:
    checksum = zlib.crc32(name + body) ^ wrong
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", checksum)


def jpeg(block: bytes) -> bytes:
    data = encoded(IMAGE, "JPEG")
    return data[:2] + segment(0xE1, b"Exif\0\0" + block) + data[2:]


def png(*chunks: bytes, at: int = 33) -> bytes:
    data = encoded(IMAGE, "PNG")
    return data[:at] + b"".join(chunks) + data[at:]


def png_exif(block: bytes) -> bytes:
    return png(chunk(b"eXIf", block))


def webp(block: bytes) -> bytes:
    return encoded(IMAGE, "WEBP", lossless=True, exif=b"Exif\0\0" + block)


def tiff(block: bytes) -> bytes:
    """The entries beside those of the pixels, as TIFF has them."""
    data = encoded(IMAGE, "TIFF")
    order = "<" if block.startswith(b"II") else ">"
    if order != data_order(data):
        return b""
    (start,) = struct.unpack_from(order + "L", data, 4)

    def entries(of: bytes, at: int) -> list[bytes]:
        (count,) = struct.unpack_from(order + "H", of, at)
        return [of[at + 2 + 12 * n : at + 14 + 12 * n] for n in range(count)]

    own = entries(data, start)
    tags = {entry[:2] for entry in own}
    merged = sorted(
        own + [e for e in entries(block, 8) if e[:2] not in tags], key=lambda e: struct.unpack(order + "H", e[:2])
    )
    directory = struct.pack(order + "H", len(merged)) + b"".join(merged) + b"\0\0\0\0"
    return data[:4] + struct.pack(order + "L", len(data)) + data[8:] + directory


def data_order(data: bytes) -> str:
    return "<" if data.startswith(b"II") else ">"


FORMATS = {"JPEG": jpeg, "PNG": png_exif, "WEBP": webp, "TIFF": tiff}


@pytest.mark.parametrize("format", FORMATS)
def test_no_odd_tag_beside_the_orientation_refuses_an_image_or_leaves_it_on_its_side(format: str) -> None:
    stored = plain(FORMATS[format](exif()))
    for value, tag, kind in itertools.product(SHOWN, ODD_TAGS, TYPES):
        order = "<>"[kind % 2] if format != "TIFF" else "<"
        odd = (tag, kind, 2, b"\xfe\xff\xff\x7f")
        data = FORMATS[format](exif(turned(value, order), odd, order=order))
        if data:
            np.testing.assert_array_equal(pixels(data), SHOWN[value](stored), f"{value} {tag:#x} {kind} {order}")


@pytest.mark.parametrize("format", FORMATS)
def test_the_orientation_is_read_as_pillow_reads_it(format: str) -> None:
    for value, order in itertools.product([*SHOWN, 0, 9, 300], "<>"):
        if data := FORMATS[format](exif(turned(value, order), order=order)):
            expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            np.testing.assert_array_equal(pixels(data), np.asarray(expected))


@pytest.mark.parametrize("block", [b"", b"x", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*" + bytes(40), bytes(999)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_garbage_instead_of_exif_says_nothing(format: str, block: bytes) -> None:
    data = FORMATS[format](block)
    np.testing.assert_array_equal(pixels(data), plain(FORMATS[format](exif())))


def test_an_orientation_in_xmp_counts_where_exif_has_none() -> None:
    xmp = b"<x:xmpmeta><rdf:Description tiff:Orientation='1' tiff:Orientation=\"6\"/>"
    data = encoded(IMAGE, "JPEG")
    with_xmp = data[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp) + data[2:]
    np.testing.assert_array_equal(pixels(with_xmp), SHOWN[6](plain(data)))
    both = with_xmp[:2] + segment(0xE1, b"Exif\0\0" + exif(turned(3))) + with_xmp[2:]
    np.testing.assert_array_equal(pixels(both), SHOWN[3](plain(data)))


def test_imagemagicks_form_of_exif_in_png_counts() -> None:
    block = b"Exif\0\0" + exif(turned(8))
    text = f"\nexif\n{len(block)}\n{block.hex()}\n"
    for packed in (False, True):
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", text, zip=packed)
        np.testing.assert_array_equal(pixels(encoded(IMAGE, "PNG", pnginfo=info)), SHOWN[8](np.asarray(IMAGE)))


LARGE = zlib.compress(bytes(3 << 20))
ANCILLARY = {
    "a profile over 1 MiB": chunk(b"iCCP", b"icc\0\0" + LARGE),
    "a text over 1 MiB": chunk(b"zTXt", b"key\0\0" + LARGE),
    "an international text over 1 MiB": chunk(b"iTXt", b"key\0\1\0\0\0" + LARGE),
    "a text over 64 MiB in all": chunk(b"tEXt", b"key\0" + bytes(1 << 20)) * 3,
    "a broken profile": chunk(b"iCCP", b"icc\0\0garbage"),
    "a wrong checksum": chunk(b"tEXt", b"key\0value", wrong=True),
    "EXIF with a wrong checksum": chunk(b"eXIf", exif(), wrong=True),
    "an unknown chunk with a wrong checksum": chunk(b"prVt", b"private", wrong=True),
    **{
        f"{name.decode()} of {size} bytes": chunk(name, bytes(size))
        for name in (b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"acTL", b"fcTL", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"iTXt")
        for size in range(4)
    },
}


@pytest.mark.parametrize("name", ANCILLARY)
def test_no_ancillary_chunk_of_a_png_refuses_it(name: str) -> None:
    np.testing.assert_array_equal(pixels(png(ANCILLARY[name])), np.asarray(IMAGE))
    np.testing.assert_array_equal(pixels(png(ANCILLARY[name], at=-12)), np.asarray(IMAGE))  # behind the pixels


def test_a_wrong_checksum_of_a_pngs_header_refuses_it() -> None:
    data = encoded(IMAGE)
    with pytest.raises(BadImage, match="Data is not image"):
        pixels(data[:29] + bytes(4) + data[33:])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_no_application_segment_of_a_jpeg_refuses_it(mode: str) -> None:
    data = encoded(IMAGE.convert(mode), "JPEG")
    heads = (b"Adobe", b"JFIF\0", b"Exif\0\0", b"MPF\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0", b"")
    for marker, head, size in itertools.product((*range(0xE0, 0xF0), 0xFE), heads, range(5)):
        odd = data[:2] + segment(marker, head + bytes(size)) + data[2:]
        if not (marker == 0xEE and head == b"Adobe"):  # a whole one says how colours are stored
            np.testing.assert_array_equal(pixels(odd), plain(data), f"{marker:#x} {head!r} {size}")
    for size in range(12):
        short = data[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"[:size]) + data[2:]
        assert pixels(short).shape == plain(data).shape


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "restarts in rows": {"restart_marker_blocks": 3},
    "4:4:4": {"subsampling": 0, "quality": 95},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_may_lack_the_marker_of_its_end_but_no_pixels(kind: str, mode: str) -> None:
    for seed in range(3):
        image = Image.open(io.BytesIO(noise_image(seed, size=(160, 120)))).convert(mode)
        data = encoded(image, "JPEG", **JPEGS[kind])
        for missing in (1, 2):
            np.testing.assert_array_equal(pixels(data[:-missing]), plain(data))
        for missing in (*range(8, 40), len(data) // 4, len(data) // 2):
            try:
                seen = pixels(data[:-missing])
            except BadImage:
                continue
            else:  # what is missing were no more than bits that say "nothing more"
                np.testing.assert_array_equal(seen, plain(data), f"{missing} bytes missing")


def test_a_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    data = encoded(IMAGE, "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    tables = [data.rfind(b"\xff\xc4", 0, at) for at in scans[2:]]
    for at in tables:
        with pytest.raises(BadImage, match="truncated"):
            pixels(data[:at])
