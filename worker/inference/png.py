"""A PNG file without its ancillary chunks: browsers pass over one that is broken, Pillow refuses the image."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from PIL import Image

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference.orientation import orientation

MAGIC = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_MOST_CHUNKS = 100_000  # an encoder's chunks have 8 KiB and more
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_AT_ONCE = 1 << 20  # bytes that are unpacked at once
_MOST_TEXT = 1 << 20  # bytes that are unpacked of a text which may hold the orientation
_RAW_EXIF = b"Raw profile type exif\0"
_XMP = b"XML:com.adobe.xmp\0"


@dataclass
class Png:
    """The file's header, and its critical chunks: IHDR, PLTE, IDAT (as one), IEND."""

    data: bytes
    width: int
    height: int
    bits: int
    colour: int
    interlaced: bool
    orientation: int
    packed: slice  # of ``data``: the pixels

    def lacks_rows(self, image: Image.Image) -> bool:
        """Whether the pixels end too early, in a stream that is whole: Pillow leaves rows of zeros.

        The stream is unpacked again only if the last row is of zeros, or not the last to be unpacked.
        """
        image.load()
        last = image.crop((0, image.height - 1, image.width, image.height))
        return (self.interlaced or last.getbbox(alpha_only=False) is None) and self._unpacked_bytes() < self._bytes

    @property
    def _bytes(self) -> int:
        """Of all rows, each with the number of its filter."""
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        bits, size = self.bits * CHANNELS.get(self.colour, 4), 0
        for left, top, right, down in passes:
            columns, rows = -((left - self.width) // right), -((top - self.height) // down)
            size += rows * (1 + (columns * bits + 7) // 8) if columns > 0 < rows else 0
        return size

    def _unpacked_bytes(self) -> int:
        """As many as the rows need, or all that there are."""
        stream, packed, size = zlib.decompressobj(), self.data[self.packed], 0
        while size < self._bytes and packed and not stream.eof:
            size += len(stream.decompress(packed, _AT_ONCE))
            packed = stream.unconsumed_tail
        return size


def parse_png(data: bytes) -> Png | None:
    """None if the file does not begin with a whole header."""
    if len(data) < 33 or data[12:16] != b"IHDR" or data[8:12] != b"\0\0\0\x0d":
        return None
    kept: list[bytes] = [MAGIC]
    pixels: list[bytes] = []
    exif = raw = xmp = None
    palette = False
    at = len(MAGIC)
    for _ in range(_MOST_CHUNKS):
        name = data[at + 4 : at + 8]
        after = at + 12 + int.from_bytes(data[at : at + 4], "big")
        body = data[at + 8 : after - 4]
        if len(name) < 4 or name == b"IEND":
            break
        if name == b"IDAT":
            pixels.append(body)
        elif not name[0] & 0x20:
            kept.append(data[at:after])
            palette = palette or name == b"PLTE"
        elif name == b"eXIf":
            exif = body
        elif body.startswith(_RAW_EXIF):
            raw = _raw_exif(name, body)
        elif name == b"iTXt" and body.startswith(_XMP):
            xmp = body
        at = after
    else:
        raise BadImage.because(f"PNG has over {_MOST_CHUNKS} chunks.")
    if data[25] == 3 and not palette:
        raise BadImage.because("PNG of palette colours has no palette.")
    whole = b"".join(pixels)
    start = sum(map(len, kept)) + 8
    # Pillow leaves the checksum of pixels to zlib, which has its own.
    kept += [len(whole).to_bytes(4, "big"), b"IDAT", whole, b"\0\0\0\0"]
    if name == b"IEND":
        kept.append(b"\0\0\0\0IEND\xaeB`\x82")
    return Png(
        data=b"".join(kept),
        width=int.from_bytes(data[16:20], "big"),
        height=int.from_bytes(data[20:24], "big"),
        bits=data[24],
        colour=data[25],
        interlaced=data[28] == 1,
        orientation=orientation(exif or raw, xmp),
        packed=slice(start, start + len(whole)),
    )


def _raw_exif(name: bytes, body: bytes) -> bytes | None:
    """ImageMagick's form of EXIF: a text of a name, a length and hexadecimal digits."""
    packed = body[len(_RAW_EXIF) :]
    try:
        if name == b"zTXt":
            packed = zlib.decompressobj().decompress(packed[1:], _MOST_TEXT)
        return bytes.fromhex("".join(packed[:_MOST_TEXT].decode("latin-1").split("\n")[3:]))
    except (ValueError, zlib.error):
        return None
