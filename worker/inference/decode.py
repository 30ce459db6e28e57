"""Encoded pictures to pixels, with limits on bytes and on pixels before anything is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clip_queue.shared.errors import BadImage

# Formats that are pictures people have; Pillow's others (EPS runs Ghostscript, PSD, FITS, …) stay closed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000", "MPO")

# What matters of a picture raises. Once for the process: catch_warnings() is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\b")


def decode(
    data: bytes,
    preprocess: Callable[[Image.Image], Image.Image | NDArray[np.uint8]],
    *,
    max_bytes: int,
    max_pixels: int,
    draft: int = 0,
) -> NDArray[np.uint8]:
    """An encoded picture as the model sees it: (height, width, 3), uint8, RGB.

    ``draft``: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as each side keeps that many pixels; 0: no.
    EXIF orientation is applied; alpha is dropped, not blended; grey, 16-bit, palette and CMYK become 8-bit RGB;
    of an animation the first frame is taken.

    Raises:
        BadImage: too large, not a picture, or broken.
    """
    if not data:
        raise BadImage.because("Empty image payload.")
    if len(data) > max_bytes:
        raise BadImage.because(f"Image of {len(data)} bytes is over the limit of {max_bytes}.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own guard, at twice the limit
        raise BadImage.because(f"Image is over the limit of {max_pixels} pixels.") from error
    except Exception as error:
        raise BadImage.because("Data is not image.") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadImage.because(f"Image of {width} × {height} pixels is over the limit of {max_pixels}.")
        try:
            # Thin strips resize to a huge other side: cropping them after the fact would need that memory.
            if max(width, height) > 100 * min(width, height):
                raise BadImage.because(f"Image of {width} × {height} pixels is too narrow: over 100 to 1.")
            if draft:
                image.draft(None, (draft, draft))
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(preprocess(_rgb(image)))
        except BadImage:
            raise
        except Exception as error:
            raise BadImage.because("Data is not image: it is truncated or broken.") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would clip 16 bits to 8, not scale
        high = np.asarray(image)
        eight = (high.clip(0, 65535) >> 8).astype(np.uint8)
        return Image.fromarray(eight).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
