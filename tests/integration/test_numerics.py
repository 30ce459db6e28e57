"""From a file's pixels to the model's: every mode of an image against open_clip's own validation transform."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.images import encoded, noise_image
from tests.reference import Reference
from tests.wire import embed_images, same, vectors


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


RGB = opened(noise_image(5, size=(120, 72)))
GREY = RGB.convert("L")
DEEP = np.asarray(GREY).astype(np.uint16) * 256 + 77  # 16 bits, the low ones not zero
VEIL = Image.linear_gradient("L").resize(RGB.size)  # alpha from 0 to 255


def with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(alpha)
    return image


def transparent_palette() -> bytes:
    # Half of the colours are fully transparent, by the file's tRNS chunk.
    return encoded(RGB.quantize(32), transparency=bytes([0] * 16 + [255] * 16))


# Name: a file, and the 8-bit RGB image that it is.
FILES: dict[str, tuple[bytes, Image.Image]] = {
    "grey": (encoded(GREY), GREY.convert("RGB")),
    "grey with alpha": (encoded(with_alpha(GREY, VEIL)), GREY.convert("RGB")),
    "one bit": (encoded(GREY.convert("1")), GREY.convert("1").convert("RGB")),
    "16-bit grey PNG": (encoded(Image.fromarray(DEEP)), GREY.convert("RGB")),
    "16-bit grey TIFF": (encoded(Image.fromarray(DEEP), "TIFF"), GREY.convert("RGB")),
    "palette": (encoded(RGB.quantize(32)), RGB.quantize(32).convert("RGB")),
    "palette with transparency": (transparent_palette(), RGB.quantize(32).convert("RGB")),
    "RGB with alpha": (encoded(with_alpha(RGB, VEIL)), RGB),
    "WebP with alpha": (encoded(with_alpha(RGB, VEIL), "WEBP", lossless=True, exact=True), RGB),
    "BMP": (encoded(RGB, "BMP"), RGB),
    "PPM": (encoded(RGB, "PPM"), RGB),
    "TIFF": (encoded(RGB, "TIFF"), RGB),
}
for name, data in {
    "JPEG": encoded(RGB, "JPEG"),
    "grey JPEG": encoded(GREY, "JPEG"),
    "CMYK JPEG": encoded(RGB.convert("CMYK"), "JPEG"),
    "CMYK TIFF": encoded(RGB.convert("CMYK"), "TIFF"),
    "YCbCr TIFF": encoded(RGB.convert("YCbCr"), "TIFF"),
    "GIF": encoded(RGB, "GIF"),
}.items():
    FILES[name] = (data, opened(data).convert("RGB"))


@pytest.mark.parametrize("name", FILES)
def test_an_image_of_any_mode_becomes_8_bit_rgb(http: httpx.Client, reference: Reference, name: str) -> None:
    data, rgb = FILES[name]
    same(vectors(embed_images(http, [data])), reference.images([rgb]))


def test_alpha_is_dropped_not_blended(http: httpx.Client) -> None:
    alphas = [VEIL.point(lambda _: 255), VEIL, VEIL.point(lambda _: 0)]
    opaque, veiled, invisible = vectors(embed_images(http, [encoded(with_alpha(RGB, alpha)) for alpha in alphas]))
    same(np.stack([veiled, invisible]), np.stack([opaque, opaque]))


def test_every_exif_orientation_is_applied(http: httpx.Client, reference: Reference) -> None:
    upright = np.asarray(RGB)
    # The turn that a viewer makes for each value of the tag, by the standard's table.
    shown = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, -1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright),
    }
    files = []
    for orientation in shown:
        exif = Image.Exif()
        exif[0x0112] = orientation
        files.append(encoded(RGB, exif=exif))
    expected = reference.images([Image.fromarray(pixels) for pixels in shown.values()])
    same(vectors(embed_images(http, files)), expected)


def test_exif_orientation_is_applied_to_jpeg(http: httpx.Client, reference: Reference) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(RGB, "JPEG", exif=exif)
    turned = ImageOps.exif_transpose(opened(file))
    assert turned.size == RGB.size[::-1]
    same(vectors(embed_images(http, [file])), reference.images([turned]))


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (63, 65), (640, 32), (31, 700), (1000, 12)])
def test_every_shape_is_resized_and_cropped_as_open_clip_does(
    http: httpx.Client, reference: Reference, size: tuple[int, int]
) -> None:
    image = RGB.resize(size)
    same(vectors(embed_images(http, [encoded(image)])), reference.images([image]))


def test_of_an_animation_the_first_frame_is_taken(http: httpx.Client, reference: Reference) -> None:
    first, second = RGB.quantize(64), GREY.quantize(64)
    file = encoded(first, "GIF", save_all=True, append_images=[second])
    same(vectors(embed_images(http, [file])), reference.images([first.convert("RGB")]))
