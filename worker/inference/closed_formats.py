"""Formats that are not decoded, by their first bytes: an error that names the format says what to convert."""

from __future__ import annotations

import re

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"8BPS", "PSD"),
    (b"%PDF-", "PDF"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"\0\0\1\0", "ICO"),
    (b"icns", "ICNS"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (b"P7\n", "PAM"),
    (b"PF\n", "PFM"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"AT&TFORM", "DjVu"),
    (b"KTX ", "KTX"),
    (b"\xabKTX", "KTX"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"gimp xcf ", "XCF"),
    (b"FUJIFILMCCD-RAW", "RAF"),
    (b"\x1aE\xdf\xa3", "WebM or Matroska video"),
    (b"II\xbc\1", "JPEG XR"),
)
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"crx ",), "CR3"),
    **dict.fromkeys((b"isom", b"iso2", b"mp41", b"mp42", b"M4V ", b"qt  ", b"avc1", b"3gp4", b"3gp5"), "Video"),
}
_SVG = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*|<!DOCTYPE\s[^>]*>\s*)*<svg[\s>]", re.DOTALL)


def name_of(data: bytes) -> str | None:
    """The name of a format that stays closed; None for what is none of these."""
    head = data[:4096]
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[8:10] == b"CR" and head.startswith(b"II*\0"):
        return "CR2"
    if head[128:132] == b"DICM":
        return "DICOM"
    if _SVG.match(head):
        return "SVG"
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)
