"""A TIFF file with the tags that its pixels need and no others, and what these say of the samples' form.

In TIFF the metadata are tags beside those of the pixels, and Pillow reads them all, those of an odd type included. So a
second directory is written behind the file, with the entries of the first page that matter; what they point to stays
where it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from clip_queue.worker.inference.orientation import ORIENTATION, orientation

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
PLANES, COLOR_MAP = 284, 320
PALETTE = 3  # a photometric
SAMPLES, SAMPLE_FORMAT, TILE_WIDTH, TILE_HEIGHT = 277, 339, 322, 323
XMP = 700
OFFSETS, LENGTHS = (273, 324), (279, 325)  # of strips and of tiles
_NEEDED = frozenset(
    {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT}
    | {266, 273, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 332, 334, 338, 347}  # strips, tiles, codecs
    | {*range(512, 522), 529, 530, 531, 532}  # JPEG, YCbCr
)
_MOST_ENTRIES = 4096
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    13: 4,
    16: 8,
}  # bytes of the types that are read
_LETTERS = {1: "B", 3: "H", 4: "L", 16: "Q"}
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


@dataclass
class Tiff:
    """The first page. ``tags``: the first value of each tag that is an unsigned number."""

    data: bytes
    tags: dict[int, int] = field(default_factory=dict)
    orientation: int = 1
    cut: bool = False  # strips, tiles, or what is needed to read them, end behind the file
    dark_palette: bool = False  # of colours up to 255, where 65,535 is white

    @property
    def whole(self) -> bool:
        """Whether it says what every image says."""
        return {WIDTH, HEIGHT, PHOTOMETRIC} <= self.tags.keys()

    @property
    def white_is_zero(self) -> bool:
        return self.tags.get(PHOTOMETRIC, 0) == 0

    @property
    def bits(self) -> int:
        return self.tags.get(BITS, 1)

    @property
    def form(self) -> str:
        """The samples in words, for messages."""
        kind = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "floating-point"}.get(self._format, "undefined")
        return f"{self.tags.get(SAMPLES, 1)} × {self.bits}-bit {kind}, photometric {self.tags.get(PHOTOMETRIC, 0)}"

    @property
    def refusal(self) -> str | None:
        """Why the samples cannot be scaled to 8 bits: their range is nowhere declared. None: they can."""
        tag = self.tags.get
        if self.bits > 8 and tag(PLANES, 1) == 2 and tag(COMPRESSION, 1) == 1 and tag(SAMPLES, 1) > 1:
            return f"TIFF of uncompressed {self.bits}-bit samples, plane by plane, is not supported."  # Pillow errs
        if tag(PHOTOMETRIC) == PALETTE and self.dark_palette:
            return "TIFF's palette has 8-bit colours; it must have 16-bit ones."
        if self._format == UNSIGNED and self.bits <= 16:
            return None
        return f"TIFF's samples ({self.form}) have no declared range; 8-bit and unsigned 16-bit ones are supported."

    @property
    def _format(self) -> int:
        return self.tags.get(SAMPLE_FORMAT, UNSIGNED)


def parse_tiff(data: bytes) -> Tiff | None:
    """None if the header or the first directory is none: Pillow may know better."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    try:
        return _parse(data, order)
    except struct.error:
        return None


def _parse(data: bytes, order: str) -> Tiff | None:
    (version,) = struct.unpack_from(order + "H", data, 2)
    if version == 42:
        pointer, counter, entry, where = "L", "H", "HHL", 4
    elif version == 43:  # BigTIFF
        pointer, counter, entry, where = "Q", "Q", "HHQ", 8
    else:
        return None
    head, width = struct.calcsize("=" + entry), struct.calcsize("=" + pointer)
    (start,) = struct.unpack_from(order + pointer, data, where)
    (count,) = struct.unpack_from(order + counter, data, start)
    if count > _MOST_ENTRIES:
        return None
    first = start + struct.calcsize("=" + counter)
    tiff = Tiff(data)
    entries: dict[int, bytes] = {}
    places: dict[int, list[int]] = {}
    xmp: bytes | None = None
    for at in range(first, first + count * (head + width), head + width):
        tag, kind, values = struct.unpack_from(order + entry, data, at)
        size = _SIZES.get(kind, 0) * values
        (target,) = struct.unpack_from(order + pointer, data, at + head)
        lies = at + head if size <= width else target
        if tag in _NEEDED:
            entries[tag] = data[at : at + head + width]
            tiff.cut |= lies + size > len(data)
        if kind in _LETTERS and values and lies + _SIZES[kind] <= len(data):
            (tiff.tags[tag],) = struct.unpack_from(order + _LETTERS[kind], data, lies)
        if tag in (*OFFSETS, *LENGTHS) and kind in _LETTERS:
            found = data[lies : lies + size]
            places[tag] = list(struct.unpack(f"{order}{len(found) // _SIZES[kind]}{_LETTERS[kind]}", found))
        if tag == COLOR_MAP and kind == 3:
            tiff.dark_palette = _is_dark(data[lies : lies + size], order)
        if tag == XMP:
            xmp = data[lies : lies + size]
    shown = tiff.tags.get(ORIENTATION)
    tiff.orientation = orientation(None, xmp) if shown is None else shown if shown <= 8 else 1
    # What is appended must not be taken for pixels that are missing.
    ends = [at + size for of, to in zip(OFFSETS, LENGTHS, strict=True) for at, size in _pairs(places, of, to)]
    tiff.cut |= max(ends, default=0) > len(data)
    directory = struct.pack(order + counter, len(entries)) + b"".join(v for _, v in sorted(entries.items()))
    padding = b"\0" * (len(data) % 2)
    place = struct.pack(order + pointer, len(data) + len(padding))
    tiff.data = b"".join([data[:where], place, data[where + width :], padding, directory, bytes(width)])
    return tiff


def _pairs(places: dict[int, list[int]], offsets: int, lengths: int) -> Iterable[tuple[int, int]]:
    return zip(places.get(offsets, ()), places.get(lengths, ()), strict=False)


def _is_dark(palette: bytes, order: str) -> bool:
    """Whether some colours of a palette are not black, and none is above 255."""
    values = struct.unpack(f"{order}{len(palette) // 2}H", palette[: len(palette) // 2 * 2])
    return 0 < max(values, default=0) < 256
