"""A JPEG file without its metadata, and what its markers say of the work that it takes to decode.

Between the markers of a scan lies entropy-coded data, in which 0xFF is followed by 0x00 or a restart marker only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference.orientation import EXIF_PREFIX, orientation

SOI, EOI, SOS, DNL, COM = 0xD8, 0xD9, 0xDA, 0xDC, 0xFE
APP0, APP1, APP14 = 0xE0, 0xE1, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
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


@dataclass
class Jpeg:
    """What stands before the first scan.

    Attributes:
        data: the file without its metadata: application segments and comments, but for the two that say how colours
            are stored.
        start: where the first scan begins in ``data``.
        components: of the frame.
    """

    data: bytes = b""
    start: int = 0
    width: int = 0
    height: int = 0
    bits: int = 0
    components: int = 0
    progressive: bool = False
    exif: list[bytes] = field(default_factory=list)
    xmp: bytes | None = None

    @property
    def orientation(self) -> int:
        return orientation(EXIF_PREFIX + b"".join(self.exif), self.xmp)

    @property
    def ends(self) -> bool:
        """Whether the file has the marker of its end."""
        return self.data.endswith(b"\xff\xd9") or self.data.find(b"\xff\xd9", self.start) >= 0

    @property
    def passes(self) -> int:
        """How often a decoder goes through the pixels: once, or once a scan."""
        marker, body, _ = _segment(self.data, self.start)
        if not self.progressive and marker == SOS and body and body[0] == self.components:
            return 1
        return max(1, len(self.scans()))

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

    def tails(self) -> tuple[bytes, bytes]:
        """Of a file that just stops: the file ended in two ways, whose pixels are equal only if none is missing.

        Raises:
            BadImage: scans are missing, which would not show.
        """
        scans = self.scans()
        ends = (0, 63) if self.progressive else (0,)
        done = {
            (c, k): scan.low for scan in scans for c in scan.components for k in ends if scan.first <= k <= scan.last
        }
        if len(done) < self.components * len(ends) or any(done.values()):
            raise BadImage.because("Data is not image: it is truncated or broken.")
        data = self.data.rstrip(b"\xff")
        return data + b"\xff\xd9", data + _FILL + b"\xff\xd9"


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
            jpeg.progressive = marker in _PROGRESSIVE
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
    return Scan(body[1 : 1 + 2 * count : 2], rest[0], rest[1], rest[2] & 15)
