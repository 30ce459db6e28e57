"""A JPEG's pixels are Pillow's to the last bit, or they are Pillow's own."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageFile

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference import decode as decoding
from clip_queue.worker.inference.image_limits import Limits, examine
from clip_queue.worker.inference.quick_jpeg import quick_jpeg

simplejpeg = pytest.importorskip("simplejpeg")
LIMITS = Limits(10**8, 10**8)
SIZES = ((1, 1), (2, 3), (8, 8), (17, 33), (31, 100), (255, 257), (641, 479))


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's encoder cannot suspend in the middle of a restart interval or of a progressive file."""
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 22)


def picture(size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    random = np.random.default_rng(size[0])
    noise = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    smooth = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size)
    out = io.BytesIO()
    Image.blend(smooth, Image.fromarray(noise), 0.2).convert(mode).save(out, "JPEG", **options)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_pixels_are_pillows(size: tuple[int, int]) -> None:
    quick = 0
    for subsampling, progressive, quality, restart in itertools.product((0, 1, 2), (False, True), (5, 85, 99), (0, 3)):
        options = {"restart_marker_blocks": restart} if restart else {}
        data = picture(size, subsampling=subsampling, progressive=progressive, quality=quality, **options)
        quick += same(data)
    for mode in ("L", "CMYK"):
        quick += same(picture(size, mode))
    quick += same(picture(size, keep_rgb=True))
    assert quick or min(size) < 4


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_so_they_are_in_what_other_encoders_write(subsampling: str) -> None:
    """With and without a JFIF segment, and with what Adobe's says of the colours."""
    for width, height in ((5, 7), (33, 65), (257, 130)):
        pixels = np.asarray(Image.open(io.BytesIO(picture((width, height)))))
        data = simplejpeg.encode_jpeg(pixels, quality=80, colorsubsampling=subsampling)
        assert data[2:4] == b"\xff\xe0"
        after = 4 + int.from_bytes(data[4:6], "big")
        quick = same(data) + same(data[:2] + data[after:])
        for transform in range(3):
            adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0" + bytes([transform])
            same(data[:2] + adobe + data[after:])
            quick += same(data[:after] + adobe + data[after:])
        assert quick >= 4


def same(data: bytes) -> bool:
    file = examine(data, LIMITS)
    pixels = quick_jpeg(file)
    if pixels is not None:
        np.testing.assert_array_equal(pixels, np.asarray(decoding.to_rgb(file, LIMITS)))
    return pixels is not None


def test_what_is_not_ordinary_is_left_to_pillow() -> None:
    assert quick_jpeg(examine(picture((64, 64), "CMYK"), LIMITS)) is None
    exif = Image.Exif()
    exif[0x0112] = 6
    assert quick_jpeg(examine(picture((64, 48), exif=exif), LIMITS)) is None
    assert quick_jpeg(examine(picture((300, 2)), LIMITS)) is None


def test_no_cut_file_gets_pixels_that_pillow_would_not_give() -> None:
    for progressive in (False, True):
        whole = picture((160, 120), progressive=progressive)
        for cut in range(700, len(whole), 501):
            for data in (whole[:cut], whole[:cut] + b"\xff\xd9", whole[:cut] + b"\0" * 40 + whole[cut + 40 :]):
                try:
                    quick = decoding.decode(data, takes_arrays, max_bytes=10**8, max_pixels=10**8)
                except BadImage:
                    quick = None
                try:
                    plain = decoding.decode(data, np.asarray, max_bytes=10**8, max_pixels=10**8)
                except BadImage:
                    plain = None
                assert (quick is None) == (plain is None), (progressive, cut)
                assert plain is None or np.array_equal(quick, plain)


def takes_arrays(image: object) -> np.ndarray:
    return np.asarray(image)


takes_arrays.takes_arrays = True  # type: ignore[attr-defined]
