"""What an image may cost is bounded from its header; good images are far from the bounds."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference import image_limits
from clip_queue.worker.inference.decode import to_rgb
from clip_queue.worker.inference.image_limits import Limits, examine
from clip_queue.worker.inference.jpeg import Jpeg
from tests.images import encoded, noise_image

LIMITS = Limits(bytes=20 << 20, pixels=50_000_000)
NOISE = Image.open(io.BytesIO(noise_image(3, size=(400, 300))))


def many_scans(size: tuple[int, int], scans: int) -> bytes:
    """A progressive JPEG whose last scan, which says nothing, is repeated."""
    data = encoded(Image.new("L", size, 128), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda"))
    return data[:-2] + data[last:-2] * scans + data[-2:]


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    at = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2")) + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def test_scans_of_a_progressive_jpeg_are_counted_and_bounded() -> None:
    header = examine(encoded(NOISE, "JPEG", progressive=True), LIMITS).header
    assert isinstance(header, Jpeg)
    assert header.passes == 10
    assert examine(many_scans((100, 100), 90), LIMITS).header.passes == 96  # type: ignore[union-attr]
    with pytest.raises(BadImage, match=r"JPEG of 7000 × 7000 pixels in 96 scans .* \(setting max_image_work\)"):
        examine(with_size(many_scans((100, 100), 90), 7000, 7000), LIMITS)


def test_many_scans_are_read_fast() -> None:
    data = many_scans((8, 8), 100_000)
    began = time.process_time()
    examine(data, LIMITS)
    assert time.process_time() - began < 2


def test_a_sequential_jpeg_is_one_pass_whatever_stands_behind_it() -> None:
    film = encoded(NOISE, "JPEG") + b"\xff\xda" * 1000  # a motion photo has a film there
    file = examine(film, LIMITS)
    assert isinstance(file.header, Jpeg)
    assert file.header.passes == 1
    assert file.in_thread


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_good_jpeg_of_50_megapixels_is_within_the_limits(options: dict[str, Any]) -> None:
    data = with_size(encoded(NOISE, "JPEG", **options), 8_000, 6_250)
    assert not examine(data, LIMITS).in_thread if options else examine(data, LIMITS).in_thread


def test_what_phones_and_the_web_have_is_decoded_in_a_thread() -> None:
    for size in ((256, 256), (640, 480), (4032, 3024)):
        assert examine(with_size(encoded(NOISE, "JPEG"), *size), LIMITS).in_thread
    for format in ("PNG", "WEBP"):
        assert examine(encoded(NOISE, format), LIMITS).in_thread
    assert examine(with_size(encoded(NOISE, "JPEG", progressive=True), 4032, 3024), LIMITS).in_thread


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_what_a_header_does_not_bound_is_not(format: str) -> None:
    assert not examine(encoded(NOISE, format), LIMITS).in_thread


def test_large_pngs_are_within_the_limits() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))

    for bits, colour in ((1, 0), (8, 2), (8, 6), (16, 6)):
        header = struct.pack(">LLBBBBB", 7000, 7000, bits, colour, 0, 0, 0)
        examine(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""), LIMITS)


def webp_canvas(width: int, height: int, size: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X\x0a\0\0\0\x02\0\0\0" + canvas
    return b"RIFF" + struct.pack("<L", size - 8) + body + bytes(size - 8 - len(body))


def test_a_webp_canvas_of_next_to_no_data_is_refused() -> None:
    with pytest.raises(BadImage, match=r"declares 7000 × 7000 pixels in 90 bytes: over 2000 pixels a byte"):
        examine(webp_canvas(7000, 7000, 90), LIMITS)
    with pytest.raises(BadImage, match="over the limit of 50000000"):
        examine(webp_canvas(16_000, 16_000, 90), LIMITS)
    assert not examine(webp_canvas(7000, 7000, 30_000), LIMITS).in_thread
    assert examine(webp_canvas(1000, 1000, 90), LIMITS).in_thread
    with pytest.raises(BadImage, match="declares"):
        examine(encoded(Image.new("RGB", (3000, 2000)), "WEBP", lossless=True, method=0), LIMITS)


def jpeg_2000(width: int, height: int, tile: tuple[int, int], *, block: int = 4, precincts: bytes = b"") -> bytes:
    sizes = struct.pack(">HLLLLLLLLH", 0, width, height, 0, 0, *tile, 0, 0, 3) + b"\x07\1\1" * 3
    coding = bytes([bool(precincts), 0, 0, 1, 1, 0, block, block, 0, 1]) + precincts
    out = b"\xff\x4f"
    for marker, body in ((b"\xff\x51", sizes), (b"\xff\x52", coding)):
        out += marker + struct.pack(">H", len(body) + 2) + body
    return out + b"\xff\x90" + bytes(100_000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (jpeg_2000(7000, 7000, (7000, 7000))[:811], "declares 7000 × 7000 pixels in 811 bytes"),
        (jpeg_2000(70_000, 70_000, (7000, 7000)), "over the limit of 50000000"),
        (jpeg_2000(7000, 7000, (16, 16)), "over 4096 tiles"),
        (jpeg_2000(7000, 7000, (7000, 7000), block=0), "code blocks or precincts"),
        (jpeg_2000(7000, 7000, (7000, 7000), precincts=b"\0"), "code blocks or precincts"),
    ],
)
def test_a_jpeg_2000_is_bounded_by_size_tiles_and_blocks(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        examine(data, LIMITS)


def test_a_good_jpeg_2000_is_within_the_limits() -> None:
    examine(jpeg_2000(7000, 7000, (256, 256)), LIMITS)
    data = encoded(NOISE, "JPEG2000", tile_size=(128, 128), codeblock_size=(32, 32), precinct_size=(128, 128))
    assert to_rgb(examine(data, LIMITS), LIMITS).size == NOISE.size


def test_chunks_and_segments_without_end_are_refused_soon() -> None:
    png = encoded(NOISE)
    jpeg = encoded(NOISE, "JPEG")
    began = time.process_time()
    with pytest.raises(BadImage, match="over 100000 chunks"):
        examine(png[:33] + b"\0\0\0\0tEXt\0\0\0\0" * 200_000 + png[33:], LIMITS)
    with pytest.raises(BadImage, match="over 20000 segments"):
        examine(jpeg[:2] + b"\xff\xfe\0\2" * 200_000 + jpeg[2:], LIMITS)
    assert time.process_time() - began < 2


def test_a_png_in_many_small_pieces_is_put_together() -> None:
    data = encoded(NOISE)
    at = data.index(b"IDAT")
    length = struct.unpack(">L", data[at - 4 : at])[0]
    body = data[at + 4 : at + 4 + length]
    pieces = b"".join(struct.pack(">L", 1) + b"IDAT" + body[n : n + 1] + bytes(4) for n in range(length))
    whole = data[: at - 4] + pieces + data[at + 8 + length :]
    np.testing.assert_array_equal(np.asarray(to_rgb(examine(whole, LIMITS), LIMITS)), np.asarray(NOISE))


def test_what_a_header_says_is_looked_at_in_microseconds() -> None:
    data = encoded(NOISE.resize((256, 256)), "JPEG")
    began = time.process_time()
    for _ in range(1000):
        examine(data, LIMITS)
    assert (time.process_time() - began) / 1000 < 0.000_2
    assert image_limits.IN_THREAD > 256 * 256
