"""Every form of an image that a program may have arrives with the same pixels."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_queue import BadRequest
from clip_queue.client.batches import several
from clip_queue.client.images import png, to_json
from clip_queue.worker.inference.decode import decode
from tests.images import encoded, noise_image

MOST = 1_000_000


def sent(image: Any) -> bytes:
    """The bytes that the server gets."""
    wire = json.loads(to_json(image, MOST))
    assert wire.keys() == {"type", "value"}
    assert wire["type"] == "base64"
    return base64.b64decode(wire["value"])


def seen(data: bytes) -> np.ndarray[Any, Any]:
    """The pixels that the server sees."""
    return decode(data, np.asarray, max_bytes=MOST, max_pixels=MOST)


def test_files_and_bytes_are_sent_as_they_are(tmp_path: Path) -> None:
    data = noise_image(format="JPEG")
    path = tmp_path / "an image.jpg"
    path.write_bytes(data)
    for form in (path, str(path), data, bytearray(data), memoryview(data)):
        assert sent(form) == data


def test_bytes_that_lie_apart_are_sent_as_they_are_seen() -> None:
    assert sent(memoryview(b"a-b-c-")[::2]) == b"abc"


def test_an_open_file_is_one_image_from_where_it_is(tmp_path: Path) -> None:
    data = noise_image() + b"\nand more\nlines"
    (tmp_path / "a").write_bytes(b"12" + data)
    with (tmp_path / "a").open("rb") as file:
        file.seek(2)
        assert sent(file) == data
    with (tmp_path / "a").open("rb", buffering=0) as file:
        assert sent(file) == b"12" + data
    assert sent(io.BytesIO(data)) == data
    with pytest.raises(BadRequest, match="BytesIO is larger than 1000 bytes"):
        to_json(io.BytesIO(bytes(1001)), 1000)


def closed() -> io.BytesIO:
    file = io.BytesIO(b"abc")
    file.close()
    return file


def test_urls_are_fetched_by_the_server() -> None:
    for url in ("https://example.org/a.png", "HTTP://example.org/a.png"):
        assert json.loads(to_json(url, MOST)) == {"type": "url", "value": url}
    assert json.loads(to_json("data:image/png;base64,AAAA", MOST))["value"] == "data:image/png;base64,AAAA"
    given = {"type": "url", "value": "https://example.org"}
    assert json.loads(to_json(given, MOST)) == given


@pytest.mark.parametrize("shape", [(1, 1, 3), (31, 17, 3), (5, 400, 3)])
def test_an_array_s_pixels_arrive(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    for array in (pixels, pixels[::-1, ::-1], np.asfortranarray(pixels)):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(array)))), array)
        assert np.array_equal(seen(sent(array)), array)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "I;16", "I"])
def test_an_image_of_pillow_is_seen_as_its_file_is(mode: str) -> None:
    image = Image.open(io.BytesIO(noise_image(3)))
    image = image.convert("L").convert("I").point(lambda v: v * 257) if mode.startswith("I") else image.convert(mode)
    image = image.convert(mode)
    as_file = encoded(image, "TIFF") if mode not in ("HSV", "I") else None
    pixels = seen(sent(image))
    assert pixels.shape == (80, 96, 3)
    if as_file:
        assert np.abs(pixels.astype(int) - seen(as_file)).max() <= (3 if mode == "YCbCr" else 0)


def test_what_the_camera_says_of_above_and_below_holds() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.open(io.BytesIO(noise_image())), "TIFF", exif=exif)
    assert np.array_equal(seen(sent(Image.open(io.BytesIO(data)))), seen(data))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4, 3)), r"\(height, width, 3\) of uint8 in RGB; this is \(4, 4, 3\) of float64"),
        (np.zeros((4, 4), np.uint8), r"this is \(4, 4\) of uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"this is \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"this is \(0, 4, 3\)"),
        (np.array(5, np.uint8), r"this is \(\) of uint8"),
        (None, "NoneType is no image"),
        (7, "int is no image"),
        ({"value": "x"}, "dict is no image"),
        ("no/such/file.png", "No such file or directory"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        (".", "is no file"),
        ("/dev/zero", "is no file"),
        (Image.new("F", (4, 4)), "mode F cannot be sent"),
        (io.StringIO("a"), "StringIO is no image"),
        (closed(), "BytesIO cannot be read: I/O operation on closed file"),
    ],
    ids=[
        "floats",
        "one plane",
        "four channels",
        "nothing",
        "no dimensions",
        "none",
        "a number",
        "an object",
        "no file",
        "a NUL",
        "a long name",
        "a folder",
        "a device",
        "mode F",
        "a text file",
        "a closed file",
    ],
)
def test_what_is_no_image_is_told(image: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        to_json(image, MOST)
    assert len(str(caught.value)) < 400


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadRequest, match="is no file"):
        to_json(tmp_path / "pipe", MOST)


def test_a_file_is_read_no_further_than_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(1001))
    with pytest.raises(BadRequest, match="larger than 1000 bytes") as caught:
        to_json(tmp_path / "large", 1000)
    assert caught.value.code == "too_large"


def test_a_broken_image_of_pillow_is_told() -> None:
    broken = Image.open(io.BytesIO(noise_image(size=(400, 400))[:5000]))
    with pytest.raises(BadRequest, match="The image cannot be read"):
        to_json(broken, MOST)


def test_one_is_told_from_several() -> None:
    arrays = [np.zeros(shape) for shape in ((4, 4, 3), (4, 4), ())]
    for one in ("a", Path("a"), b"a", *arrays, Image.new("RGB", (1, 1)), {"type": "url"}, io.BytesIO(b"a\nb")):
        found = several(one, "image")
        assert isinstance(found, list)
        assert len(found) == 1
    many = np.zeros((5, 4, 4, 3), np.uint8)
    assert several(many, "image") is many
    names = np.array(["a", "b"])
    assert several(names, "image") is names


class Endless(io.RawIOBase):
    """Gives a few bytes at a time, for ever, and counts them."""

    given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), 1000)
        buffer[:size] = bytes(size)
        self.given += size
        return size


def test_of_an_open_file_no_more_is_read_than_may_be_sent() -> None:
    file = Endless()
    with pytest.raises(BadRequest, match="larger than 5000 bytes"):
        to_json(file, 5000)
    assert file.given == 5001
