"""Missing pixels refuse an image, also where the file says that it is whole."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference import quick_jpeg
from clip_queue.worker.inference.decode import decode
from tests.images import encoded, noise_image

RGB = Image.open(io.BytesIO(noise_image(3, size=(203, 165)))).convert("RGB")
END = b"\xff\xd9"


def pixels(data: bytes, draft: int = 0) -> np.ndarray:
    return decode(data, np.asarray, max_bytes=1 << 26, max_pixels=1 << 24, draft=draft)


def sequential_in_scans(image: Image.Image) -> bytes:
    """A sequential JPEG with a scan for each component, from greys: each is the luminance."""
    parts = [encoded(channel, "JPEG", quality=90) for channel in image.convert("YCbCr").split()]
    frame = parts[0].index(b"\xff\xc0")
    size = parts[0][frame + 5 : frame + 9]
    components = b"".join(bytes([n, 0x11, 0]) for n in (1, 2, 3))
    head = parts[0][:frame] + b"\xff\xc0\0\x11\x08" + size + b"\x03" + components
    out = head
    for number, part in enumerate(parts, 1):
        start = part.index(b"\xff\xda")
        tables = part[part.index(b"\xff\xc4") : start]
        out += tables + b"\xff\xda\0\x08\x01" + bytes([number, 0, 0, 63, 0]) + part[start + 10 : -2]
    return out + END


GREY_AT_THE_END = RGB.copy()
GREY_AT_THE_END.paste((128, 128, 128), (0, 100, 203, 165))

JPEGS: dict[str, bytes] = {
    "colours": encoded(RGB, "JPEG", quality=90),
    "not subsampled": encoded(RGB, "JPEG", quality=90, subsampling=0),
    "grey": encoded(RGB.convert("L"), "JPEG", quality=90),
    "CMYK": encoded(RGB.convert("CMYK"), "JPEG", quality=90),
    "restart markers": encoded(RGB, "JPEG", quality=90, restart_marker_blocks=5),
    "progressive": encoded(RGB, "JPEG", quality=90, progressive=True),
    "grey, progressive": encoded(RGB.convert("L"), "JPEG", quality=90, progressive=True),
    "sequential in scans": sequential_in_scans(RGB),
    "grey at the end": encoded(GREY_AT_THE_END, "JPEG", quality=90),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_whole_jpeg_is_taken_with_its_end_and_without(name: str) -> None:
    data = JPEGS[name]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for whole in (data, data[:-2], data + b"behind it", data + data):
        np.testing.assert_array_equal(pixels(whole), expected)


@pytest.mark.parametrize("draft", [0, 40])
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_is_cut_and_ended_again_is_refused(name: str, draft: int) -> None:
    data = JPEGS[name]
    start = data.index(b"\xff\xda")
    for part in (0.1, 0.3, 0.5, 0.7):
        at = start + int((len(data) - start) * part)
        for end in (b"", END, b"\xff" + END, END + bytes(1000)):
            with pytest.raises(BadImage, match="it is truncated or broken"):
                pixels(data[:at] + end, draft)


def test_an_end_in_the_first_scan_of_a_progressive_jpeg_is_seen() -> None:
    data = JPEGS["progressive"]
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    for at in (second, second - 40, data.index(b"\xff\xda") + 20):
        with pytest.raises(BadImage, match="it is truncated or broken"):
            pixels(data[:at] + END)


@pytest.mark.parametrize("quick", [True, False], ids=["simplejpeg", "Pillow"])
@pytest.mark.parametrize("quality", [20, 75, 95])
def test_an_end_in_the_last_refinement_of_a_progressive_jpeg_is_seen(
    quality: int, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not quick:
        monkeypatch.setattr(quick_jpeg, "simplejpeg", None)
    for image in (RGB, RGB.convert("L")):
        data = encoded(image, "JPEG", quality=quality, progressive=True)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        last = data.rindex(b"\xff\xda")
        for preprocess in (plain, arrays):
            whole = decode(data, preprocess, max_bytes=1 << 26, max_pixels=1 << 24)
            np.testing.assert_array_equal(whole, expected)
            for at in (last + 14, (last + len(data)) // 2, len(data) - 40):
                for end in (b"", END):
                    with pytest.raises(BadImage, match="it is truncated or broken"):
                        decode(data[:at] + end, preprocess, max_bytes=1 << 26, max_pixels=1 << 24)


def plain(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def arrays(image: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(image)


arrays.takes_arrays = True  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of tags that are cut
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "1"])
def test_a_tiff_that_ends_in_its_pixels_is_refused(mode: str, compression: str | None) -> None:
    if compression == "jpeg" and mode in ("P", "1", "CMYK"):
        return
    data = encoded(RGB.convert(mode), "TIFF", compression=compression)
    whole = pixels(data)
    np.testing.assert_array_equal(whole, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    for missing in (1, 10, 100, 127, 200, 400):
        try:
            np.testing.assert_array_equal(pixels(data[:-missing]), whole)
        except BadImage:
            continue
        # Uncompressed, the file ends with its pixels; else with tags that they may not need.
        assert compression


def png(bits: int, colour: int, rows: int, *, interlaced: bool = False, fill: int = 0) -> bytes:
    """A PNG of 30 × 40 pixels that has only so many rows (or bytes, of an interlaced one), in a whole stream."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(1) + bytes([fill]) * ((30 * bits * channels + 7) // 8)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))

    header = struct.pack(">LL5B", 30, 40, bits, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(range(3 * min(256, 1 << bits)))) if colour == 3 and bits < 8 else b""
    packed = zlib.compress(bytes(rows) if interlaced else row * rows)
    parts = chunk(b"IHDR", header) + palette + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


FORMS: list[Any] = [(1, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (4, 3), (8, 4), (16, 4), (8, 6), (16, 6)]


@pytest.mark.parametrize(("bits", "colour"), FORMS)
def test_a_png_whose_stream_lacks_rows_is_refused(bits: int, colour: int) -> None:
    for rows in (0, 1, 20, 39):
        with pytest.raises(BadImage, match="it is truncated or broken"):
            pixels(png(bits, colour, rows, fill=0x11))
    for fill in (0, 0x11):
        assert pixels(png(bits, colour, 40, fill=fill)).shape == (40, 30, 3)


def test_an_interlaced_png_too() -> None:
    whole = sum(rows * (1 + 3 * columns) for rows, columns in ((5, 4), (5, 4), (5, 8), (10, 7), (10, 15), (20, 15)))
    whole += 20 * (1 + 3 * 30)
    assert pixels(png(8, 2, whole, interlaced=True)).shape == (40, 30, 3)
    for size in (0, 1, whole // 2, whole - 1):
        with pytest.raises(BadImage, match="it is truncated or broken"):
            pixels(png(8, 2, size, interlaced=True))


def test_a_png_of_palette_colours_without_a_palette_is_refused() -> None:
    with pytest.raises(BadImage, match="no palette"):
        pixels(png(8, 3, 40))
