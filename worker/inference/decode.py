"""Encoded images to pixels: what metadata say is passed over, what a file may cost is bounded before it is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference import closed_formats
from clip_queue.worker.inference.image_limits import ImageFile, Limits, check_density, check_pixels, examine
from clip_queue.worker.inference.jpeg import Jpeg
from clip_queue.worker.inference.orientation import orientation, upright
from clip_queue.worker.inference.png import Png
from clip_queue.worker.inference.quick_jpeg import quick_jpeg
from clip_queue.worker.inference.tiff import Tiff

# Formats that are images people have; Pillow's others (EPS runs Ghostscript, PSD, FITS, …) stay closed.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000"]  # an MPO is opened as JPEG

try:
    from pi_heif import register_heif_opener
except ImportError:  # then HEIC is one of the formats that stay closed
    pass
else:
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    FORMATS.append("HEIF")

TRUNCATED = "Data is not image: it is truncated or broken."
TOO_LARGE = "Decoding it takes too much memory."

# What matters of an image raises. Once for the process: catch_warnings() is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\b")


def decode(
    data: bytes,
    preprocess: Callable[[Image.Image], Image.Image | NDArray[np.uint8]],
    *,
    max_bytes: int,
    max_pixels: int,
    draft: int = 0,
) -> NDArray[np.uint8]:
    """An encoded image as the model sees it: (height, width, 3), uint8, RGB. Its cost is bounded, its time is not.

    ``draft``: see :func:`to_rgb`.

    Raises:
        BadImage: too large, not an image, of a form that is not supported, or broken.
    """
    limits = Limits(max_bytes, max_pixels)
    return decoded(examine(data, limits), preprocess, limits, draft)


def decoded(
    file: ImageFile,
    preprocess: Callable[[Image.Image], Image.Image | NDArray[np.uint8]],
    limits: Limits,
    draft: int = 0,
) -> NDArray[np.uint8]:
    """As :func:`decode`, of a file that was examined."""
    if draft or not getattr(preprocess, "takes_arrays", False):
        return preprocessed(to_rgb(file, limits, draft), preprocess)
    # It gets a JPEG's pixels without a detour through Pillow; they are the same.
    pixels = quick_jpeg(file)
    return preprocessed(_by_pillow(file, limits) if pixels is None else pixels, preprocess)


def preprocessed(
    image: Image.Image | NDArray[np.uint8], preprocess: Callable[[Any], Image.Image | NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """What a model's preprocessing makes of an RGB image. Whatever it raises is the image's fault."""
    try:
        return np.asarray(preprocess(image))
    except MemoryError as error:
        raise BadImage.because(TOO_LARGE) from error
    except Exception as error:
        raise BadImage.because(TRUNCATED) from error


def to_rgb(file: ImageFile, limits: Limits, draft: int = 0) -> Image.Image:
    """The image upright, 8-bit RGB; of an animation the first frame. docs/images.md says what becomes of each form.

    ``draft``: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as each side keeps that many pixels; 0: no.

    Raises:
        BadImage: as :func:`decode`.
    """
    if not draft and isinstance(file.header, Jpeg) and file.header.progressive:
        pixels = quick_jpeg(file)  # which decodes once what Pillow would have to decode twice
        if pixels is not None:
            return Image.fromarray(pixels)
    return _by_pillow(file, limits, draft)


def _by_pillow(file: ImageFile, limits: Limits, draft: int = 0) -> Image.Image:
    """As :func:`to_rgb`. Pillow passes over the warning that data ended early: so doubtful files are decoded twice."""
    header = file.header
    if not isinstance(header, Jpeg):
        return _to_rgb(file.data, header, limits, draft)
    header.check_scans()
    image = _to_rgb(header.ended(), header, limits, draft)
    if header.in_doubt or header.progressive or _has_grey_corner(image):
        other = _to_rgb(header.filled(), header, limits, draft)
        if not np.array_equal(np.asarray(image), np.asarray(other)):
            raise BadImage.because(TRUNCATED)
    return image


def _has_grey_corner(image: Image.Image) -> bool:
    """Whether a JPEG may have ended too early: what it lacks, the last pixel included, is of one grey."""
    right, bottom = image.width - 1, image.height - 1
    return any(image.getpixel(at) == (128, 128, 128) for at in ((0, 0), (right, 0), (0, bottom), (right, bottom)))


def _to_rgb(data: bytes, header: object, limits: Limits, draft: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own guard, at twice the limit
        raise BadImage.because(f"Image is over the limit of {limits.pixels} pixels.") from error
    except MemoryError as error:
        raise BadImage.because(TOO_LARGE) from error
    except Exception as error:
        raise BadImage.because(_why_closed(data, header)) from error
    with image:
        width, height = image.size
        check_pixels(width, height, limits.pixels)
        # Thin strips resize to a huge other side: cropping them after the fact would need that memory.
        if max(width, height) > 100 * min(width, height):
            raise BadImage.because(f"Image of {width} × {height} pixels is too narrow: over 100 to 1.")
        if image.format in ("AVIF", "HEIF"):
            check_density(width, height, len(data))
        try:
            if draft:
                image.draft(None, (draft, draft))
            if isinstance(header, Png) and header.lacks_rows(image):
                raise BadImage.because(TRUNCATED)
            turn = getattr(header, "orientation", None)
            if turn is None:  # HEIF says it outside of EXIF, and the codec has turned the image
                turn = 1 if image.format == "HEIF" else orientation(image.info.get("exif"), _xmp(image))
            return upright(_eight_bits(image, header if isinstance(header, Tiff) else None), turn)
        except BadImage:
            raise
        except MemoryError as error:
            raise BadImage.because(TOO_LARGE) from error
        except Exception as error:
            raise BadImage.because(TRUNCATED) from error


def _xmp(image: Image.Image) -> bytes | None:
    xmp = image.info.get("xmp")
    return xmp if isinstance(xmp, bytes) else None


def _why_closed(data: bytes, header: object) -> str:
    if isinstance(header, Jpeg) and header.bits not in (0, 8):
        return f"JPEG of {header.bits} bits a sample is not supported."
    if isinstance(header, Tiff) and header.whole:
        return f"TIFF of this form is not supported ({header.form})."
    name = closed_formats.name_of(data)
    # A file of a format that is decoded here, and yet cannot be, is broken.
    return f"{name} is not supported." if name and not (name == "HEIC" and "HEIF" in FORMATS) else "Data is not image."


def _eight_bits(image: Image.Image, tiff: Tiff | None) -> Image.Image:
    """8-bit RGB by the range that the form declares. 8-bit forms become what open_clip makes of them."""
    if tiff is not None and tiff.cut:
        raise BadImage.because(TRUNCATED)
    if tiff is not None and (reason := tiff.refusal):
        raise BadImage.because(reason)
    mode = image.mode
    if mode == "RGB":
        image.load()
        return image
    if mode.startswith("I;16") or mode == "I":  # Pillow would clip 16 bits to 8, not scale
        bits = tiff.bits if tiff else 16
        high = np.asarray(image).clip(0, (1 << bits) - 1) >> (bits - 8)
        eight = high.astype(np.uint8)
        return Image.fromarray(255 - eight if tiff and tiff.white_is_zero else eight).convert("RGB")
    if mode in ("F", "LAB"):
        what = "floating-point samples (they have no declared range)" if mode == "F" else "CIE L*a*b* colours"
        raise BadImage.because(f"{image.format} of {what} is not supported.")
    if mode == "La":  # grey multiplied by its alpha
        return image.convert("LA").convert("RGB")
    if mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
