"""A hostile tenant: images that are small to send and dear to decode."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from functools import cache

from PIL import Image

from tests.chaos.audit import Accepted, Fate
from tests.chaos.work import AGAIN, Sender
from tests.images import bomb, encoded

PAUSE = (0.2, 1.5)  # seconds between two requests
KEY = "hostile-key"


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG of ``width`` × ``height`` whose last scan, which says nothing, is repeated.

    Only the header is of that size: the file has a few bytes a scan.
    """
    data = encoded(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda"))
    data = data[:-2] + data[last:-2] * scans + data[-2:]
    at = data.find(b"\xff\xc2") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def slow_scans(side: int, scans: int) -> bytes:
    """The same with all its pixels: within the limits, and each scan goes over every block."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda"))
    return data[:-2] + data[last:-2] * scans + data[-2:]


def jpeg_2000(width: int, height: int, tile: int, size: int) -> bytes:
    """A JPEG 2000 of ``size`` bytes: its header, and nothing of its pixels."""
    sizes = struct.pack(">HLLLLLLLLH", 0, width, height, 0, 0, tile, tile, 0, 0, 3) + b"\x07\1\1" * 3
    coding = bytes([0, 0, 0, 1, 1, 0, 4, 4, 0, 1])
    quantisation = bytes([0x40, 0x40])
    out = b"\xff\x4f"
    for marker, body in ((b"\xff\x51", sizes), (b"\xff\x52", coding), (b"\xff\x5c", quantisation)):
        out += marker + struct.pack(">H", len(body) + 2) + body
    out += b"\xff\x90\0\x0a\0\0" + bytes(4) + b"\0\1" + b"\xff\x93"
    return out + bytes(max(0, size - len(out) - 2)) + b"\xff\xd9"


def webp(width: int, height: int, size: int) -> bytes:
    """A WebP of ``size`` bytes with a canvas and no frame."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X\x0a\0\0\0\x02\0\0\0" + canvas
    return b"RIFF" + struct.pack("<L", size - 8) + body + bytes(size - 8 - len(body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and has no pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))

    header = struct.pack(">LLBBBBB", width, height, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


EXPENSIVE: dict[str, Callable[[], bytes]] = {
    "JPEG of 600 scans": lambda: many_scans(7000, 7000, 600),
    "JPEG of 50 scans, cut short": lambda: many_scans(4000, 4000, 50),
    "JPEG that takes seconds": lambda: slow_scans(4000, 50),  # it reaches the storm's time limit
    "JPEG 2000 of 811 bytes": lambda: jpeg_2000(20_000, 20_000, 20_000, 811),
    "JPEG 2000 of 49 megapixels": lambda: jpeg_2000(7000, 7000, 7000, 30_000),
    "WebP of 90 bytes": lambda: webp(16_000, 16_000, 90),
    "WebP of 49 megapixels": lambda: webp(7000, 7000, 30_000),
    "PNG of 900 megapixels": lambda: png_header(30_000, 30_000),
    "PNG of 49 black megapixels": lambda: bomb(7000, 7000),
}


@cache
def sent(name: str) -> dict[str, str]:
    """An expensive image as it is sent."""
    return {"type": "base64", "value": base64.b64encode(EXPENSIVE[name]()).decode()}


class Hostile(Sender):
    """Sends expensive images through both doors, each kind in turn, until told to stop; not while ``quiet``.

    What it must be told is that an image is refused; that the service has no time; or a vector, where it could be
    decoded after all.
    """

    quiet = False
    busy = False

    def _work(self) -> None:
        names: list[str] = []
        while not self._over.wait(self._rng.uniform(*PAUSE)):
            self.busy = not self.quiet
            if self.busy:
                if not names:
                    names = self._rng.sample(sorted(EXPENSIVE), len(EXPENSIVE))
                self._attack(names.pop())
            self.busy = False

    def _attack(self, name: str) -> None:
        images = [sent(name)] * self._rng.randint(1, 4)
        if self._rng.random() < 0.3:
            self._submit(images)
            return
        response = self._send("POST", "/clip/embed_image", {"image": images})
        if response is None:
            self._audit.hostile("request cut off")
            return
        self._audit.hostile(f"request {response.status_code}")
        if response.status_code not in (200, 400, 422, 429, 503, 504, 507):
            self._audit.wrong(f"{response.status_code} for {name}: {response.text[:200]}")

    def _submit(self, images: list[dict[str, str]]) -> None:
        response = self._send("POST", "/jobs", {"task": "embed_image", "image": images, "deadline_s": 20})
        if response is None or response.status_code in AGAIN:
            self._audit.hostile("job refused")
        elif response.status_code == 202:
            self._audit.accepted(Accepted(response.json()["id"], [], Fate.ANY, KEY))
        else:
            self._audit.wrong(f"{response.status_code} for a job of images: {response.text[:200]}")
