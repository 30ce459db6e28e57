"""Which way up an image is to be shown: the one thing that is read of its metadata, by our own few lines.

Pillow's ``exif_transpose`` rewrites the whole EXIF block after turning the image, and so refuses images whose other
tags have odd types. Here a block that cannot be read says nothing, and the image stays as it is stored.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

ORIENTATION = 0x0112
EXIF_PREFIX = b"Exif\0\0"

_INTEGERS = {3: "H", 4: "L", 8: "h", 9: "l"}  # SHORT, LONG, SSHORT, SLONG: the types that Pillow reads as a number
_MOST_ENTRIES = 4096  # of a directory; those of cameras have about a dozen
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(exif: bytes | None, xmp: bytes | None = None) -> int:
    """1 to 8 of an EXIF block (with or without ``Exif\\0\\0``), or of XMP where EXIF has none; 1 where neither has."""
    found = _of_exif(exif or b"")
    if found is None and xmp and (match := _XMP.search(xmp)):
        found = int(match[1])
    return found if found in _TURNS else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as it is to be shown."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _of_exif(exif: bytes) -> int | None:
    while exif.startswith(EXIF_PREFIX):  # some writers put it twice
        exif = exif[len(EXIF_PREFIX) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "L", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * min(count, _MOST_ENTRIES), 12):
            tag, kind, values = struct.unpack_from(order + "HHL", exif, at)
            if tag == ORIENTATION and kind in _INTEGERS and values == 1:
                return int(struct.unpack_from(order + _INTEGERS[kind], exif, at + 8)[0])
    except struct.error:  # cut off: what stood before was read
        pass
    return None
