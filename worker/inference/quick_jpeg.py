"""JPEG straight to an array, where that gives the pixels of Pillow's decoder to the last bit.

Both call libjpeg-turbo; Pillow has four bytes a pixel, in strips, which are packed once more for torch. What is not an
ordinary JPEG, and what the decoder so much as warns of, is left to Pillow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clip_queue.worker.inference.image_limits import ImageFile
from clip_queue.worker.inference.jpeg import Jpeg

try:
    import simplejpeg
except ImportError:  # then Pillow decodes all
    simplejpeg = None


def quick_jpeg(file: ImageFile) -> NDArray[np.uint8] | None:
    """The pixels (height, width, 3) of an RGB, YCbCr or grey JPEG that stands upright; None: Pillow decides."""
    header = file.header
    if simplejpeg is None or not isinstance(header, Jpeg):
        return None
    width, height = header.width, header.height
    ordinary = header.bits == 8 and header.components in (1, 3) and not header.in_doubt and header.orientation == 1
    if not ordinary or max(width, height) > 100 * min(width, height):
        return None
    header.check_scans()
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(header.ended(), "RGB", fastdct=False, fastupsample=False)
    except Exception:  # warnings as well: Pillow says what it is
        return None
    corners = pixels[:: max(1, height - 1), :: max(1, width - 1)]
    if pixels.shape != (height, width, 3) or (corners == 128).all(axis=2).any():  # it may have ended too early
        return None
    return pixels
