"""What a picture is by its first bytes: only what every browser shows as pixels. SVG and HTML are documents that can
hold a program, whatever their names end in."""

from __future__ import annotations

_AVIF = (b"avif", b"avis")


def type_of(data: bytes) -> str | None:
    """The media type of an encoded picture; None: it is none of the six."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith(b"BM") and len(data) > 26 and data[6:10] == bytes(4):
        return "image/bmp"
    if data[4:8] == b"ftyp" and data[8:12] in _AVIF:
        return "image/avif"
    return None
