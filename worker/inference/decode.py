"""Decoding of images. The limits on bytes and pixels are checked before anything is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clip_queue.shared.errors import BadImage

# The formats of images that people have. Pillow's other formats are refused: EPS, for one, runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000", "MPO")

# Problems that matter are errors, not warnings. The filter is set for the process: catch_warnings() is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\b")


def decode(
    data: bytes,
    preprocess: Callable[[Image.Image], Image.Image | NDArray[np.uint8]],
    *,
    max_bytes: int,
    max_pixels: int,
    draft: int = 0,
) -> NDArray[np.uint8]:
    """Decode an image and preprocess it. Returns pixels (height, width, 3), uint8, RGB.

    The EXIF orientation is applied. Alpha is dropped, not blended. Grey, 16-bit, palette and CMYK images become 8-bit
    RGB. Of an animation, the first frame is taken.

    Args:
        data: the encoded image.
        preprocess: gets the upright image in the mode RGB.
        max_bytes: largest encoded image, bytes.
        max_pixels: largest image, pixels.
        draft: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if each side keeps this many pixels; 0: never. It
            changes the vectors a little.

    Raises:
        BadImage: the image is too large, too narrow or broken, or the data is no image.
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
            # Resizing makes the other side of a narrow strip huge, and cropping comes only afterwards.
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
    """The image in the mode RGB, 8 bits a channel."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would clip 16 bits to 8, not scale
        high = np.asarray(image)
        eight = (high.clip(0, 65535) >> 8).astype(np.uint8)
        return Image.fromarray(eight).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
