"""Every form of samples is scaled by the range that it declares, or refused with the reason."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference.decode import decode
from tests.images import encoded, noise_image

RGB = Image.open(io.BytesIO(noise_image(3, size=(72, 48))))
GREY = RGB.convert("L")
VALUES = np.asarray(GREY)
SHOWN = np.asarray(GREY.convert("RGB"))
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def pixels(data: bytes) -> np.ndarray:
    return decode(data, np.asarray, max_bytes=1 << 26, max_pixels=1 << 24)


def tiff(samples: bytes, bits: int, *, format: int = 1, photometric: int = 1, order: str = "<") -> bytes:
    """A TIFF of one strip of grey samples, :data:`GREY`'s size."""
    tags = {
        256: GREY.width,
        257: GREY.height,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: GREY.height,
        279: len(samples),
        339: format,
    }
    entries = b"".join(struct.pack(order + "HHLL", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8 + len(samples))
    return head + samples + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def packed_12(values: np.ndarray) -> bytes:
    flat = values.astype(np.uint16).reshape(-1, 2)
    out = np.stack([flat[:, 0] >> 4, (flat[:, 0] & 15) << 4 | flat[:, 1] >> 8, flat[:, 1] & 255], 1)
    return out.astype(np.uint8).tobytes()


DEEP = VALUES.astype(np.uint32)
SCALED = {
    "8 bits": tiff(VALUES.tobytes(), 8),
    "8 bits, white is zero": tiff((255 - VALUES).tobytes(), 8, photometric=0),
    "12 bits, packed": tiff(packed_12(DEEP * 16 + 7), 12),
    "16 bits": tiff((DEEP * 256 + 77).astype("<u2").tobytes(), 16),
    "16 bits, the other order": tiff((DEEP * 256 + 77).astype(">u2").tobytes(), 16, order=">"),
    "16 bits, white is zero": tiff((65535 - DEEP * 256 - 77).astype("<u2").tobytes(), 16, photometric=0),
    "16-bit PNG": encoded(Image.fromarray((DEEP * 256 + 77).astype(np.uint16))),
    "16-bit JPEG 2000": encoded(Image.fromarray((DEEP * 256 + 77).astype(np.uint16)), "JPEG2000"),
    "16-bit PGM": b"P5 72 48 65535\n" + (DEEP * 256 + 77).astype(">u2").tobytes(),
    "grey with alpha": encoded(GREY.convert("LA")),
}


@pytest.mark.parametrize("name", SCALED)
def test_grey_of_a_declared_range_is_scaled_by_it(name: str) -> None:
    np.testing.assert_array_equal(pixels(SCALED[name]), SHOWN)


def test_a_pgm_is_scaled_by_the_maximum_that_it_declares() -> None:
    levels = b"P5 72 48 1023\n" + (DEEP * 1023 // 255).astype(">u2").tobytes()
    assert np.abs(pixels(levels).astype(int) - SHOWN).max() <= 1


def planes(bits: int) -> bytes:
    """A TIFF of :data:`RGB`, not compressed, plane by plane."""
    samples = (np.asarray(RGB).transpose(2, 0, 1).astype(f"<u{bits // 8}") << (bits - 8)).tobytes()
    size = len(samples) // 3
    where = 8 + len(samples)
    tables = struct.pack("<9L", *[bits] * 3, *(8 + n * size for n in range(3)), *[size] * 3)
    tags = {256: (1, 72), 257: (1, 48), 258: (3, where), 259: (1, 1), 262: (1, 2), 273: (3, where + 12), 277: (1, 3)}
    tags |= {278: (1, 48), 279: (3, where + 24), 284: (1, 2)}
    entries = b"".join(struct.pack("<HHLL", tag, 4, *value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<L", where + len(tables)) + samples + tables + directory


def jpeg_2000(image: Image.Image, bits: int, *, signed: bool = False) -> bytes:
    """A JPEG 2000 whose header declares another depth."""
    data = bytearray(encoded(image, "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51") + 42
    for n in range(len(image.getbands())):
        data[at + 3 * n] = signed << 7 | bits - 1
    return bytes(data)


def palette(colours: np.ndarray) -> bytes:
    """A TIFF of palette colours (3, 256), 16-bit."""
    data = encoded(GREY.convert("P"), "TIFF")
    at = data.index(struct.pack("<HHL", 320, 3, 768))
    return data[: at + 8] + struct.pack("<L", len(data)) + data[at + 12 :] + colours.astype("<u2").tobytes()


def test_planes_of_8_bits_are_put_together() -> None:
    np.testing.assert_array_equal(pixels(planes(8)), np.asarray(RGB))


def test_a_palette_of_16_bit_colours_is_used() -> None:
    levels = np.stack([np.arange(256)] * 3) * 257
    index = np.asarray(GREY.convert("P"))
    np.testing.assert_array_equal(pixels(palette(levels)), np.stack([index] * 3, -1))


REFUSED = {
    "16 bits, plane by plane": planes(16),
    "palette of 8-bit colours": palette(np.stack([np.arange(256)] * 3)),
    "JPEG 2000, 16-bit colours": jpeg_2000(RGB, 16),
    "JPEG 2000, 12-bit colours with alpha": jpeg_2000(RGB.convert("RGBA"), 12),
    "JPEG 2000, 10-bit grey with alpha": jpeg_2000(GREY.convert("LA"), 10),
    "JPEG 2000, 9-bit grey": jpeg_2000(GREY, 9),
    "JPEG 2000, 20-bit grey": jpeg_2000(GREY, 20),
    "JPEG 2000, 4-bit grey": jpeg_2000(GREY, 4),
    "JPEG 2000, 1-bit colours": jpeg_2000(RGB, 1),
    "JPEG 2000, signed": jpeg_2000(GREY, 8, signed=True),
    "int8": tiff(VALUES.astype(np.int8).tobytes(), 8, format=SIGNED),
    "int16": tiff(VALUES.astype("<i2").tobytes(), 16, format=SIGNED),
    "int32 of 0 to 255": tiff(VALUES.astype("<i4").tobytes(), 32, format=SIGNED),
    "uint32": tiff((DEEP << 24).astype("<u4").tobytes(), 32),
    "uint32, the other order": tiff((DEEP << 24).astype(">u4").tobytes(), 32, order=">"),
    "float of 0 to 1": tiff((VALUES / 255).astype("<f4").tobytes(), 32, format=FLOAT),
    "float, white is zero": tiff((VALUES / 255).astype("<f4").tobytes(), 32, format=FLOAT, photometric=0),
    "double": tiff((VALUES / 255).astype("<f8").tobytes(), 64, format=FLOAT),
    "half": tiff((VALUES / 255).astype("<f2").tobytes(), 16, format=FLOAT),
    "16 bits, white is zero, the other order": tiff(bytes(VALUES.size * 2), 16, photometric=0, order=">"),
    "12 bits, white is zero": tiff(packed_12(DEEP), 12, photometric=0),
    "10 bits": tiff(bytes(VALUES.size * 2), 10),
    "a colour filter's mosaic": tiff((DEEP * 256).astype("<u2").tobytes(), 16, photometric=32803),
    "Pillow's F": encoded(GREY.convert("F"), "TIFF"),
    "Pillow's I": encoded(GREY.convert("I"), "TIFF"),
    "portable float map": b"Pf\n72 48\n-1.0\n" + (VALUES / 255).astype("<f4").tobytes(),
    "CIE L*a*b*": encoded(Image.merge("LAB", [GREY] * 3), "TIFF"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_declares_no_range_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(BadImage, match=r"declared? (no )?range|not supported|must have") as told:
        pixels(REFUSED[name])
    assert "Data is not image" not in told.value.message


def test_a_jpeg_of_12_bits_is_refused_by_name() -> None:
    data = encoded(RGB, "JPEG")
    at = data.index(b"\xff\xc0") + 4
    with pytest.raises(BadImage, match="JPEG of 12 bits a sample is not supported"):
        pixels(data[:at] + b"\x0c" + data[at + 1 :])


PARITY: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "1-bit PNG": (GREY.convert("1"), "PNG", {}),
    "1-bit TIFF, G4": (GREY.convert("1"), "TIFF", {"compression": "group4"}),
    "palette TIFF": (RGB.quantize(64), "TIFF", {}),
    "LZW TIFF": (RGB, "TIFF", {"compression": "tiff_lzw"}),
    "deflate TIFF": (RGB, "TIFF", {"compression": "tiff_adobe_deflate"}),
    "JPEG TIFF": (RGB, "TIFF", {"compression": "jpeg"}),
    "CMYK TIFF": (RGB.convert("CMYK"), "TIFF", {}),
    "CMYK JPEG": (RGB.convert("CMYK"), "JPEG", {}),
    "YCbCr TIFF": (RGB.convert("YCbCr"), "TIFF", {}),
    "LA TIFF": (GREY.convert("LA"), "TIFF", {}),
    "RGBA TIFF": (RGB.convert("RGBA"), "TIFF", {}),
    "grey JPEG 2000": (GREY, "JPEG2000", {}),
    "JPEG 2000": (RGB, "JPEG2000", {}),
    "AVIF": (RGB, "AVIF", {}),
    "BigTIFF": (RGB, "TIFF", {"big_tiff": True}),
    "TIFF of two pages": (RGB, "TIFF", {"save_all": True, "append_images": [RGB.rotate(90)]}),
    "animated PNG": (RGB, "PNG", {"save_all": True, "append_images": [RGB.rotate(90)]}),
    "MPO": (RGB, "MPO", {"save_all": True, "append_images": [RGB.rotate(180)]}),
}


@pytest.mark.parametrize("name", PARITY)
def test_8_bit_forms_become_what_open_clip_makes_of_them(name: str) -> None:
    image, format, options = PARITY[name]
    data = encoded(image, format, **options)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_grey_times_alpha_is_divided_by_it() -> None:
    la = GREY.convert("LA")
    la.putalpha(128)
    data = encoded(la, "TIFF")
    tag = struct.pack("<HHL", 338, 3, 1)
    at = data.index(tag) + len(tag)
    premultiplied = data[:at] + b"\x01" + data[at + 1 :]
    assert Image.open(io.BytesIO(premultiplied)).mode == "La"
    assert pixels(premultiplied).mean() > 1.8 * VALUES.mean() * 0.9
