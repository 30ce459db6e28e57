"""A JPEG file without its metadata, and what its markers say of the work that it takes to decode.

Between the markers of a scan lies entropy-coded data, in which 0xFF is followed by 0x00 or a restart marker only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference.orientation import EXIF_PREFIX, orientation

SOI, EOI, SOS, DNL, COM = 0xD8, 0xD9, 0xDA, 0xDC, 0xFE
APP0, APP1, APP14 = 0xE0, 0xE1, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_END = b"\xff\xd9"
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_IN_HUFFMAN_CODE = frozenset({0xC0, 0xC1, 0xC2})
_ALONE = frozenset({0x01, SOI, *range(0xD0, 0xD8)})  # markers that no segment follows
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_MOST_SEGMENTS = 20_000  # before the first scan; a large colour profile takes a few dozen
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in entropy-coded data: neither stuffing nor a restart

# Bytes that no encoder has written, with restart markers: what is decoded from them looks like nothing.
_NOISE = bytes(range(0xFE, 0, -1))
_FILL = _NOISE * 8 + b"".join(b"\xff" + bytes([0xD0 + n % 8]) + _NOISE for n in range(16))


@dataclass
class Scan:
    """One pass over (a part of) the coefficients, of these components: ``first`` to ``last``, down to bit ``low``."""

    components: bytes
    first: int
    last: int
    low: int
    refines: bool = False  # what an earlier scan has of the same coefficients


@dataclass
class Jpeg:
    """What stands before the first scan.

    Attributes:
        data: the file without its metadata: application segments and comments, but for the two that say how colours
            are stored.
        start: where the first scan begins in ``data``.
        components: of the frame.
        coding: the marker of the frame.
    """

    data: bytes = b""
    start: int = 0
    width: int = 0
    height: int = 0
    bits: int = 0
    components: int = 0
    coding: int = 0
    exif: list[bytes] = field(default_factory=list)
    xmp: bytes | None = None

    @property
    def progressive(self) -> bool:
        return self.coding in _PROGRESSIVE

    @property
    def orientation(self) -> int:
        return orientation(EXIF_PREFIX + b"".join(self.exif), self.xmp)

    @cached_property
    def scans(self) -> list[Scan]:
        """All scans. A sequential file whose first scan has all components has no other that counts."""
        found: list[Scan] = []
        at: int | None = self.start
        while at is not None:
            marker, body, after = _segment(self.data, at)
            if marker == SOS and body:
                found.append(_scan(body))
                if not self.progressive and len(found[0].components) == self.components:
                    break
            elif marker == EOI or marker is None:
                break
            match = _NEXT_MARKER.search(self.data, after)
            at = match.start() if match else None
        return found

    @property
    def passes(self) -> int:
        """How often a decoder goes through the pixels: once, or once a scan; as often again if it is in doubt."""
        return max(1, len(self.scans)) * (2 if self.in_doubt else 1)

    @cached_property
    def _ends(self) -> bool:
        """Whether the file has the marker of its end."""
        return self.data.endswith(_END) or self.data.find(_END, self.start) >= 0

    @property
    def in_huffman_code(self) -> bool:
        """Whether it is coded as all but a few are: arithmetic and lossless coding take several times as long."""
        return self.coding in _IN_HUFFMAN_CODE

    @cached_property
    def in_doubt(self) -> bool:
        """Whether pixels could be missing of which no decoder would so much as warn: scans may be missing, too."""
        if not self._ends or self.components == 4 or not self.in_huffman_code:
            return True
        return not self.scans[-1].refines if self.progressive and self.scans else len(self.scans) != 1

    def check_scans(self) -> None:
        """Raise :class:`BadImage` if scans are missing: a decoder would answer with a blurred or grey image."""
        if self.progressive:
            low = {
                (component, k): scan.low
                for scan in self.scans
                for component in scan.components
                for k in (0, 63)
                if scan.first <= k <= scan.last
            }
            whole = len(low) >= 2 * self.components and not any(low.values())
        else:
            whole = sum(len(scan.components) for scan in self.scans) >= self.components
        if not whole:
            raise BadImage.because("Data is not image: it is truncated or broken.")

    def ended(self) -> bytes:
        """The file with a marker of its end."""
        return self.data if self._ends else self.data.rstrip(b"\xff") + _END

    def filled(self) -> bytes:
        """The file with noise before its end, where no pixels are missing if they are equal to those without it."""
        at = self.data.find(_END, self.start)
        return (self.data[:at] if at >= 0 else self.data).rstrip(b"\xff") + _FILL + _END


def parse_jpeg(data: bytes) -> Jpeg | None:
    """The file's header, and the file without its metadata; None if no scan begins."""
    jpeg = Jpeg()
    kept = [b"\xff\xd8"]
    at = 2
    for _ in range(_MOST_SEGMENTS):
        marker, body, after = _segment(data, at)
        if marker is None or marker == EOI:
            return None
        if marker == SOS:
            jpeg.start = sum(map(len, kept))
            jpeg.data = b"".join([*kept, b"\xff\xda", data[after - len(body) - 2 :]])
            return jpeg
        if marker == APP1 and body.startswith(EXIF_PREFIX):
            jpeg.exif.append(body[len(EXIF_PREFIX) :])
        elif marker == APP1 and body.startswith(_XMP):
            jpeg.xmp = body[len(_XMP) :]
        if marker in _FRAMES and len(body) >= 6:
            jpeg.bits, jpeg.components = body[0], body[5]
            jpeg.height, jpeg.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            jpeg.coding = marker
        if _matters(marker, body):
            kept += [b"\xff", bytes([marker]), (len(body) + 2).to_bytes(2, "big"), body]
        at = after
    raise BadImage.because(f"JPEG has over {_MOST_SEGMENTS} segments before its pixels.")


def _matters(marker: int, body: bytes) -> bool:
    """Whether a segment has a say in the pixels. libjpeg too passes over a JFIF or Adobe segment that is too short."""
    if marker == APP0:
        return body.startswith(b"JFIF\0") and len(body) >= 14
    if marker == APP14:
        return body.startswith(b"Adobe") and len(body) >= 12
    return not (APP0 <= marker <= 0xEF or marker in _ALONE or marker == COM)


def _segment(data: bytes, at: int) -> tuple[int | None, bytes, int]:
    """The next marker from ``at`` on, what its segment holds, and where the segment ends; None where there is none."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        marker = data[at + 1]
        at += 1 if marker == 0xFF else 2
        if marker in (0x00, 0xFF):
            continue
        if marker in _ALONE or marker == EOI:
            return marker, b"", at
        length = max(2, int.from_bytes(data[at : at + 2], "big"))
        if at + length > len(data):
            return None, b"", len(data)
        return marker, data[at + 2 : at + length], at + length
    return None, b"", len(data)


def _scan(body: bytes) -> Scan:
    count = body[0]
    rest = body[1 + 2 * count : 4 + 2 * count].ljust(3, b"\0")
    return Scan(body[1 : 1 + 2 * count : 2], rest[0], rest[1], rest[2] & 15, rest[2] >> 4 > 0)
