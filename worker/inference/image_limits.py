"""What an image may cost, from the bytes of its header, before anything is decoded.

Work is counted in pixels × passes: a pass is a scan of a progressive JPEG, or four bytes of each of a PNG's pixels. The
formats whose cost a header bounds are decoded in a thread as long as the work is small; all else is decoded in a helper
process, where time and memory are bounded from outside.
"""

from __future__ import annotations

from dataclasses import dataclass

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference.jpeg import Jpeg, parse_jpeg
from clip_queue.worker.inference.png import CHANNELS, MAGIC, Png, parse_png
from clip_queue.worker.inference.tiff import Tiff, parse_tiff

IN_THREAD = 128_000_000  # most work in a thread, about half a second: a progressive photograph of 12 megapixels
IN_THREAD_WEBP = 16_000_000  # pixels: 16 bytes of memory each
# Formats that can say "all one colour" of any number of pixels in a few bytes.
SPARSE_PIXELS = 4_000_000  # pixels that need no bytes to speak for them
SPARSE_DENSITY = 2_000  # beyond: pixels an encoded byte may stand for; photographs have 2 to 50
MOST_TILES = 4_096  # of a JPEG 2000: each takes 6 KB before it is decoded
MOST_BLOCKS = 2_000_000  # code blocks and precincts of a JPEG 2000


@dataclass(frozen=True)
class Limits:
    """``work``: pixels × passes (settings ``max_image_bytes``, ``max_image_pixels``, ``max_image_work``)."""

    bytes: int
    pixels: int
    work: int = 1_000_000_000


@dataclass(frozen=True)
class ImageFile:
    """An encoded image that is within the limits as far as its header tells.

    Attributes:
        data: the file, without its metadata where they could be taken out.
        header: of a JPEG, PNG or TIFF.
        in_thread: whether its cost is known and small.
    """

    data: bytes
    header: Jpeg | Png | Tiff | None
    in_thread: bool


def examine(data: bytes, limits: Limits) -> ImageFile:
    """Raises :class:`BadImage` for what is over a limit."""
    if not data:
        raise BadImage.because("Empty image payload.")
    if len(data) > limits.bytes:
        raise BadImage.because(f"Image of {len(data)} bytes is over the limit of {limits.bytes}.")
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data, limits)
    if data.startswith(MAGIC):
        return _png(data, limits)
    if data[:2] in (b"II", b"MM"):
        tiff = parse_tiff(data)
        return ImageFile(tiff.data if tiff else data, tiff, False)
    in_thread = False
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        width, height = _webp_size(data)
        check_pixels(width, height, limits.pixels)
        check_density(width, height, len(data))
        in_thread = width * height <= IN_THREAD_WEBP
    elif (at := data.find(b"\xff\x4f\xff\x51", 0, 1 << 20)) >= 0 and data.startswith((b"\xff\x4f", b"\0\0\0\x0cjP")):
        _jpeg_2000(data, at, limits)
    return ImageFile(data, None, in_thread)


def check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise BadImage.because(f"Image of {width} × {height} pixels is over the limit of {most}.")


def check_density(width: int, height: int, size: int) -> None:
    """Refuse a large canvas of next to no data."""
    if width * height > max(SPARSE_PIXELS, SPARSE_DENSITY * size):
        raise BadImage.because(
            f"Image declares {width} × {height} pixels in {size} bytes: over {SPARSE_DENSITY} pixels a byte."
        )


def _check_work(what: str, pixels: int, passes: int, limits: Limits) -> None:
    if pixels * passes > limits.work:
        raise BadImage.because(
            f"{what} is {pixels * passes} pixels × passes of work, over the limit of {limits.work} "
            "(setting max_image_work)."
        )


def _jpeg(data: bytes, limits: Limits) -> ImageFile:
    jpeg = parse_jpeg(data)
    if jpeg is None:
        return ImageFile(data, None, False)
    pixels = jpeg.width * jpeg.height
    check_pixels(jpeg.width, jpeg.height, limits.pixels)
    passes = jpeg.passes
    _check_work(f"JPEG of {jpeg.width} × {jpeg.height} pixels in {passes} scans", pixels, passes, limits)
    return ImageFile(jpeg.data, jpeg, pixels * passes <= IN_THREAD and jpeg.in_huffman_code)


def _png(data: bytes, limits: Limits) -> ImageFile:
    png = parse_png(data)
    if png is None:
        return ImageFile(data, None, False)
    pixels = png.width * png.height
    check_pixels(png.width, png.height, limits.pixels)
    passes = -(-png.bits * CHANNELS.get(png.colour, 4) // 32)
    _check_work(f"PNG of {png.width} × {png.height} pixels", pixels, passes, limits)
    return ImageFile(png.data, png, pixels * passes <= IN_THREAD)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas; (0, 0) if the header says none."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _jpeg_2000(data: bytes, at: int, limits: Limits) -> None:
    """The image's size, its tiles, and how finely they are divided, from the codestream's main header."""
    size = data[at + 8 : at + 42]
    if len(size) < 34:
        return
    right, bottom, left, top, across, down, _, _ = (int.from_bytes(size[n : n + 4], "big") for n in range(0, 32, 4))
    width, height, components = max(0, right - left), max(0, bottom - top), int.from_bytes(size[32:34], "big")
    check_pixels(width, height, limits.pixels)
    check_density(width, height, len(data))
    _check_depth(data[at + 42 : at + 42 + 3 * components : 3])
    if -(-right // max(1, across)) * -(-bottom // max(1, down)) > MOST_TILES:
        raise BadImage.because(f"JPEG 2000 has over {MOST_TILES} tiles.")
    at += 4 + int.from_bytes(data[at + 4 : at + 6], "big")
    while data[at : at + 1] == b"\xff" and data[at : at + 2] != b"\xff\x90" and at + 4 <= len(data):
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if data[at + 1] == 0x52 and len(body) >= 10:  # how components are coded
            block = (body[6] & 15) + (body[7] & 15) + 4  # log2 of a code block's samples
            precinct = min(((b & 15) + (b >> 4) for b in body[10:]), default=30) if body[0] & 1 else 30
            if width * height * components >> min(block, precinct) > MOST_BLOCKS:
                raise BadImage.because(f"JPEG 2000 is divided into over {MOST_BLOCKS} code blocks or precincts.")
        at += 2 + max(2, length)


def _check_depth(samples: bytes) -> None:
    """Refuse what Pillow scales wrongly: of other depths it makes white black, of fewer bits it makes white grey.

    ``samples``: of each component, a bit for the sign, and the number of bits less one.
    """
    colours = samples[: 1 if len(samples) < 3 else 3]
    for one in colours:
        bits = (one & 0x7F) + 1
        if one & 0x80:
            raise BadImage.because(f"JPEG 2000 of signed {bits}-bit samples is not supported: they declare no range.")
        if bits != 8 and not (len(samples) == 1 and 10 <= bits <= 16):
            what = "grey" if len(samples) == 1 else "colour or transparent"
            raise BadImage.because(f"JPEG 2000 of {bits}-bit {what} samples is not supported.")
