"""Decoding: limits that hold before a pixel is decoded, and one kind of error for all that can be wrong."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference.decode import FORMATS, decode
from tests.images import bomb, encoded, noise_image

MEGAPIXEL = 1_000_000


def decoded(
    data: bytes, *, max_bytes: int = 20 << 20, max_pixels: int = MEGAPIXEL, preprocess: Any = None
) -> np.ndarray:
    return decode(data, preprocess or (lambda image: image), max_bytes=max_bytes, max_pixels=max_pixels)


def untouched(image: Image.Image) -> Image.Image:
    raise AssertionError("a refused image was decoded")


@pytest.fixture
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any decoding of pixels is a failure."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)


def test_pixels_come_as_rows_of_8_bit_rgb() -> None:
    pixels = decoded(noise_image(size=(96, 80)))
    assert pixels.shape == (80, 96, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(noise_image(size=(96, 80))))))


@pytest.mark.parametrize("guard", [None, 50_000_000, 100_000_000, 1_000_000_000])
@pytest.mark.usefixtures("no_pixels")
def test_a_huge_image_is_refused_by_its_header_with_any_limit_of_pillow(
    monkeypatch: pytest.MonkeyPatch, guard: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", guard)
    with pytest.raises(BadImage, match=r"over the limit of 50000000"):
        decoded(bomb(), max_pixels=50_000_000, preprocess=untouched)


def test_the_pixel_limit_is_exact() -> None:
    data = encoded(Image.new("RGB", (100, 50)))
    assert decoded(data, max_pixels=5000).shape == (50, 100, 3)
    with pytest.raises(BadImage, match="Image of 100 × 50 pixels is over the limit of 4999"):
        decoded(data, max_pixels=4999, preprocess=untouched)


@pytest.mark.usefixtures("no_pixels")
def test_the_byte_limit_is_exact_and_comes_before_the_header() -> None:
    data = b"x" * 100
    with pytest.raises(BadImage, match="Image of 100 bytes is over the limit of 99"):
        decoded(data, max_bytes=99)
    with pytest.raises(BadImage, match="Data is not image"):
        decoded(data, max_bytes=100)


@pytest.mark.parametrize(("size", "fits"), [((100, 1), True), ((101, 1), False), ((1, 101), False), ((500, 5), True)])
def test_a_strip_is_refused_where_a_side_is_over_100_times_the_other(size: tuple[int, int], fits: bool) -> None:
    data = encoded(Image.new("RGB", size))
    if fits:
        assert decoded(data).shape == (size[1], size[0], 3)
    else:
        with pytest.raises(BadImage, match=f"Image of {size[0]} × {size[1]} pixels is too narrow: over 100 to 1"):
            decoded(data, preprocess=untouched)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_the_usual_formats_are_read(format: str) -> None:
    assert format in FORMATS
    assert decoded(encoded(Image.new("RGB", (8, 6), "red"), format)).shape == (6, 8, 3)


@pytest.mark.parametrize("format", ["EPS", "PDF", "TGA", "PCX", "ICO", "SGI", "XBM", "DDS", "MSP"])
def test_other_formats_of_pillow_are_refused(format: str) -> None:
    mode = "1" if format in ("XBM", "MSP") else "RGB"
    named = format in ("EPS", "PDF", "ICO", "DDS")
    with pytest.raises(BadImage, match=f"{format} is not supported" if named else "Data is not image"):
        decoded(encoded(Image.new(mode, (32, 32)), format))


def _truncated(format: str) -> bytes:
    data = noise_image(size=(640, 480), format=format)
    return data[: len(data) // 2]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "PPM"])
def test_a_truncated_image_is_refused_not_filled_up(format: str) -> None:
    with pytest.raises(BadImage, match="Data is not image"):
        decoded(_truncated(format))


@pytest.mark.parametrize("error", [ValueError, OSError, SyntaxError, ZeroDivisionError, RecursionError])
def test_all_errors_of_a_decoder_are_errors_of_the_image(error: type[Exception]) -> None:
    def preprocess(image: Image.Image) -> Image.Image:
        raise error("deep inside")

    with pytest.raises(BadImage) as told:
        decoded(noise_image(), preprocess=preprocess)
    assert "Data is not image: it is truncated or broken." in told.value.message
    assert "deep inside" not in told.value.message


def test_empty_data_is_an_error() -> None:
    with pytest.raises(BadImage, match="Empty image payload"):
        decoded(b"")


# In a process of its own: pytest has filters of its own around each test.
WARN = """
import sys, warnings
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from PIL import Image
from clip_queue.worker.inference.decode import decode

warnings.simplefilter("error", append=True)
data = sys.stdin.buffer.read()
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: decode(data, np.asarray, max_bytes=10**6, max_pixels=10**6), range(500)))
try:
    warnings.warn("another's")
except UserWarning:
    print("told")
"""


def test_warnings_of_the_decoder_are_hidden_and_no_others_with_many_threads() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    broken = encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif.tobytes()[:-6])
    run = subprocess.run([sys.executable, "-c", WARN], input=broken, capture_output=True, timeout=60, check=True)
    assert run.stdout == b"told\n", run.stderr


def test_preprocessing_gets_an_upright_image_in_rgb() -> None:
    seen: list[tuple[str, tuple[int, int]]] = []

    def preprocess(image: Image.Image) -> Image.Image:
        seen.append((image.mode, image.size))
        return image

    exif = Image.Exif()
    exif[0x0112] = 6
    decoded(encoded(Image.new("L", (20, 10)), exif=exif), preprocess=preprocess)
    assert seen == [("RGB", (10, 20))]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("I;16", 40_000, 156), ("L", 7, 7), ("1", 1, 255), ("LA", (9, 0), 9)],
)
def test_grey_images_of_8_and_16_bits_become_rgb(mode: str, value: Any, expected: int) -> None:
    pixels = decoded(encoded(Image.new(mode, (2, 2), value), "TIFF"))
    np.testing.assert_array_equal(pixels, np.full((2, 2, 3), expected, dtype=np.uint8))


def test_the_transparent_colour_of_a_palette_is_dropped_not_blended() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    pixels = decoded(encoded(image, "PNG", transparency=bytes([255, 0])))
    np.testing.assert_array_equal(pixels[0, 0], [10, 20, 30])


@pytest.mark.parametrize(("draft", "height"), [(0, 480), (50, 60), (61, 120), (500, 480)])
def test_a_jpeg_may_be_decoded_at_a_part_of_its_size(draft: int, height: int) -> None:
    data = noise_image(size=(640, 480), format="JPEG")
    pixels = decode(data, lambda image: image, max_bytes=1 << 20, max_pixels=MEGAPIXEL, draft=draft)
    assert pixels.shape == (height, height * 4 // 3, 3)


def test_an_image_over_twice_pillows_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadImage, match="Image is over the limit of 1000000 pixels"):
        decoded(encoded(Image.new("RGB", (10, 10))), preprocess=untouched)


@pytest.mark.parametrize("where", ["open", "convert", "preprocess"])
def test_lack_of_memory_is_not_said_to_be_a_broken_image(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> Any:
        raise MemoryError

    if where != "preprocess":
        monkeypatch.setattr(Image if where == "open" else Image.Image, where, lacking)
    preprocess: Any = lacking if where == "preprocess" else np.asarray
    with pytest.raises(BadImage, match="takes too much memory"):
        decode(_grey_png(), preprocess, max_bytes=2**20, max_pixels=2**20)


def _grey_png() -> bytes:
    """A form that has to be converted."""
    out = io.BytesIO()
    Image.new("L", (8, 8), 7).save(out, "PNG")
    return out.getvalue()
