"""Decoding: limits before a pixel is touched, one kind of error for whatever is wrong."""

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
from tests.pictures import bomb, encoded, picture

MEGAPIXEL = 1_000_000


def whole(data: bytes, *, max_bytes: int = 20 << 20, max_pixels: int = MEGAPIXEL, crop: Any = None) -> np.ndarray:
    return decode(data, crop or (lambda image: image), max_bytes=max_bytes, max_pixels=max_pixels)


def untouched(image: Image.Image) -> Image.Image:
    raise AssertionError("a refused picture was decoded")


@pytest.fixture
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any decoding of pixels is a failure."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)


def test_pixels_come_as_rows_of_8_bit_rgb() -> None:
    pixels = whole(picture(size=(96, 80)))
    assert pixels.shape == (80, 96, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(picture(size=(96, 80))))))


@pytest.mark.parametrize("guard", [None, 50_000_000, 100_000_000, 1_000_000_000])
@pytest.mark.usefixtures("no_pixels")
def test_a_huge_picture_is_refused_from_its_header_wherever_pillows_own_guard_stands(
    monkeypatch: pytest.MonkeyPatch, guard: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", guard)
    with pytest.raises(BadImage, match=r"over the limit of 50000000"):
        whole(bomb(), max_pixels=50_000_000, crop=untouched)


def test_the_pixel_limit_is_exact() -> None:
    data = encoded(Image.new("RGB", (100, 50)))
    assert whole(data, max_pixels=5000).shape == (50, 100, 3)
    with pytest.raises(BadImage, match="Image of 100 × 50 pixels is over the limit of 4999"):
        whole(data, max_pixels=4999, crop=untouched)


@pytest.mark.usefixtures("no_pixels")
def test_the_byte_limit_is_exact_and_comes_before_the_header() -> None:
    data = b"x" * 100
    with pytest.raises(BadImage, match="Image of 100 bytes is over the limit of 99"):
        whole(data, max_bytes=99)
    with pytest.raises(BadImage, match="Data is not image"):
        whole(data, max_bytes=100)


@pytest.mark.parametrize(("size", "fits"), [((100, 1), True), ((101, 1), False), ((1, 101), False), ((500, 5), True)])
def test_a_strip_is_refused_where_a_side_is_over_100_times_the_other(size: tuple[int, int], fits: bool) -> None:
    data = encoded(Image.new("RGB", size))
    if fits:
        assert whole(data).shape == (size[1], size[0], 3)
    else:
        with pytest.raises(BadImage, match="too narrow"):
            whole(data, crop=untouched)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_pictures_that_people_have_are_read(format: str) -> None:
    assert format in FORMATS
    assert whole(encoded(Image.new("RGB", (8, 6), "red"), format)).shape == (6, 8, 3)


@pytest.mark.parametrize("format", ["EPS", "PDF", "TGA", "PCX", "ICO", "SGI", "XBM", "DDS", "MSP"])
def test_what_else_pillow_can_read_stays_closed(format: str) -> None:
    mode = "1" if format in ("XBM", "MSP") else "RGB"
    named = format in ("EPS", "PDF", "ICO", "DDS")
    with pytest.raises(BadImage, match=f"{format} is not supported" if named else "Data is not image"):
        whole(encoded(Image.new(mode, (32, 32)), format))


def _truncated(format: str) -> bytes:
    data = picture(size=(640, 480), format=format)
    return data[: len(data) // 2]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "PPM"])
def test_a_truncated_picture_is_refused_not_filled_up(format: str) -> None:
    with pytest.raises(BadImage, match="Data is not image"):
        whole(_truncated(format))


@pytest.mark.parametrize("error", [MemoryError, ValueError, OSError, SyntaxError, ZeroDivisionError, RecursionError])
def test_whatever_a_decoder_raises_is_the_pictures_fault(error: type[Exception]) -> None:
    def crop(image: Image.Image) -> Image.Image:
        raise error("deep inside")

    with pytest.raises(BadImage) as told:
        whole(picture(), crop=crop)
    assert "deep inside" not in told.value.message


def test_nothing_is_an_empty_payload() -> None:
    with pytest.raises(BadImage, match="Empty image payload"):
        whole(b"")


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


def test_warnings_of_the_decoder_stay_inside_and_no_other_does_whatever_threads_decode() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    broken = encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif.tobytes()[:-6])
    run = subprocess.run([sys.executable, "-c", WARN], input=broken, capture_output=True, timeout=60, check=True)
    assert run.stdout == b"told\n", run.stderr


def test_the_crop_sees_rgb_upright() -> None:
    seen: list[tuple[str, tuple[int, int]]] = []

    def crop(image: Image.Image) -> Image.Image:
        seen.append((image.mode, image.size))
        return image

    exif = Image.Exif()
    exif[0x0112] = 6
    whole(encoded(Image.new("L", (20, 10)), exif=exif), crop=crop)
    assert seen == [("RGB", (10, 20))]
