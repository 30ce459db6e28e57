"""Images of a request: what is read, what is refused, and with which message."""

from __future__ import annotations

import base64

import pytest

from clip_queue.api.images import parse_image
from clip_queue.api.items import parse_images
from clip_queue.shared.errors import BadImage, BadInput
from clip_queue.shared.fetch import ImageUrl

LIMIT = 4096
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 3 + b"\xfb\xff\xfe"  # its base64 holds both + and /
TEXT = base64.b64encode(JPEG).decode()
CAUSE = "Could not load input image. Cause: "
NO_IMAGE = "prompt[2] must be an image: an object with type and value, or a string of a URL or base64."


def b64(value: object, kind: object = "base64") -> dict[str, object]:
    return {"type": kind, "value": value}


@pytest.mark.parametrize("kind", ["base64", "BASE64", "Base64"])
def test_the_type_is_case_insensitive(kind: str) -> None:
    assert parse_image(b64(TEXT, kind), LIMIT) == JPEG
    url = parse_image({"type": "uRL", "value": " https://example.org/a.png\n"}, LIMIT)
    assert url == ImageUrl("https://example.org/a.png")


@pytest.mark.parametrize(
    "prefix",
    [
        "data:image/jpeg;base64,",
        "data:image/JPEG;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:image/svg+xml;base64,",
        "data:application/octet-stream;base64,",
        "data:;base64,",
        "data:image/vnd.microsoft.icon;base64,",
        "data:image/png;charset=utf-8;base64,",
        "data:image/png;name=a b.png;x=1;base64, ",
        "\n data:image/*;base64,",
    ],
)
def test_a_data_uri_of_any_type_is_read(prefix: str) -> None:
    assert parse_image(b64(prefix + TEXT), LIMIT) == JPEG
    assert parse_image(prefix + TEXT, LIMIT) == JPEG


@pytest.mark.parametrize(
    "text",
    [
        TEXT.rstrip("="),
        "\r\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)),
        f"  {TEXT}\n",
        base64.urlsafe_b64encode(JPEG).decode(),
        base64.urlsafe_b64encode(JPEG).decode().rstrip("="),
        "\ufeff" + TEXT,  # what the original drops silently, before and in an image
        f'"{TEXT}"',
        f"{TEXT[:40]}\u200b{TEXT[40:]}",
        TEXT + "====",
    ],
    ids=["no padding", "lines", "spaces", "urlsafe", "urlsafe no padding", "BOM", "quotes", "zero width", "padding"],
)
def test_base64_that_the_original_reads_is_read(text: str) -> None:
    assert parse_image(b64(text), LIMIT) == JPEG
    assert parse_image(text, LIMIT) == JPEG


@pytest.mark.parametrize("length", range(1, 7))
def test_every_length_of_padding(length: int) -> None:
    data = bytes(range(length))
    assert parse_image(b64(base64.b64encode(data).decode()), LIMIT) == data
    assert parse_image(b64(base64.b64encode(data).decode().rstrip("=")), LIMIT) == data


@pytest.mark.parametrize("text", ["http://a.b/c", "https://a.b/c", "HTTPS://a.b/c", "  HttPs://a.b/c"])
def test_a_bare_string_that_begins_with_http_is_a_url(text: str) -> None:
    assert parse_image(text, LIMIT) == ImageUrl(text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "!!not base64!!",
        "not-an-image.",
        "A",
        "AAAAA",
        "data:text/plain,aGVsbG8=",
        "data:image/png,%89PNG",
        "/etc/passwd.png",
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "C:\\image.png",
        "\ud800",
        "ÿØÿ",
    ],
)
def test_text_that_is_not_base64_is_malformed(text: str) -> None:
    for value in (text, b64(text)):
        with pytest.raises(BadImage) as caught:
            parse_image(value, LIMIT)
        assert caught.value.message == CAUSE + "Malformed base64 input image."
        assert caught.value.status == 400


@pytest.mark.parametrize("text", ["", "  \n", "====", "data:image/png;base64,"])
def test_an_empty_payload_is_named(text: str) -> None:
    for value in (text, b64(text)):
        with pytest.raises(BadImage) as caught:
            parse_image(value, LIMIT)
        assert caught.value.message == CAUSE + "Empty image payload."


@pytest.mark.parametrize("kind", ["file", "FILE", "multipart", "pil", "path", "", "bytes"])
def test_other_types_are_not_recognised(kind: str) -> None:
    with pytest.raises(BadImage) as caught:
        parse_image(b64("/etc/passwd", kind), LIMIT)
    assert caught.value.message == CAUSE + "Image declaration contains not recognised image type."


@pytest.mark.parametrize("kind", ["numpy", "NumPy", "numpy_object"])
def test_pickles_are_refused_unread(kind: str) -> None:
    with pytest.raises(BadImage) as caught:
        parse_image(b64("gASVAAAA", kind), LIMIT)
    assert caught.value.message == (
        CAUSE + "NumPy images are not accepted: pickled input can run code. Send base64 or a URL."
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, NO_IMAGE),
        (7, NO_IMAGE),
        ([TEXT], NO_IMAGE),
        (b"bytes", NO_IMAGE),
        ({}, "prompt[2].type must be a string: url or base64."),
        ({"value": TEXT}, "prompt[2].type must be a string: url or base64."),
        ({"type": None, "value": TEXT}, "prompt[2].type must be a string: url or base64."),
        ({"type": ["url"], "value": TEXT}, "prompt[2].type must be a string: url or base64."),
        ({"type": "base64"}, "prompt[2].value must be a string."),
        ({"type": "base64", "value": None}, "prompt[2].value must be a string."),
        ({"type": "url", "value": 7}, "prompt[2].value must be a string."),
        ({"type": "base64", "value": ["SECRET"]}, "prompt[2].value must be a string."),
    ],
)
def test_a_wrong_shape_names_the_field_and_not_the_value(value: object, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_image(value, LIMIT, "prompt[2]")
    assert not isinstance(caught.value, BadImage)
    assert caught.value.message == message


def test_the_size_limit_is_exact_and_counts_neither_prefix_nor_line_breaks() -> None:
    largest = base64.encodebytes(bytes(LIMIT)).decode()
    assert parse_image("data:image/png;base64," + largest, LIMIT) == bytes(LIMIT)
    for size in (LIMIT + 1, LIMIT + 2, LIMIT + 3, LIMIT * 9):
        with pytest.raises(BadImage, match=r"Image is larger than 4096 bytes \(setting max_image_bytes\)\."):
            parse_image(b64(base64.b64encode(bytes(size)).decode()), LIMIT)


def test_images_come_in_order_and_urls_know_their_index() -> None:
    url = "https://a.b/1"
    assert parse_images([url, b64(TEXT), {"type": "url", "value": url}], LIMIT, "image") == [
        ImageUrl(url, 0),
        JPEG,
        ImageUrl(url, 2),
    ]
    assert parse_images([], LIMIT, "image") == []


def test_the_first_bad_image_is_raised_with_its_index() -> None:
    with pytest.raises(BadImage) as caught:
        parse_images([TEXT, b64("!"), None], LIMIT, "image")
    assert caught.value.index == 1
    with pytest.raises(BadInput, match=r"^image\[1\] must") as shape:
        parse_images([b64(TEXT), None], LIMIT, "image")
    assert shape.value.index == 1


def test_a_single_image_has_no_index() -> None:
    assert parse_images(["https://a.b/1"], LIMIT, "image") == [ImageUrl("https://a.b/1", None)]
    with pytest.raises(BadImage) as caught:
        parse_images([b64("!")], LIMIT, "image")
    assert caught.value.index is None
    with pytest.raises(BadInput, match=r"^image\.value must"):
        parse_images([b64(None)], LIMIT, "image")


def test_a_url_is_not_shown_by_repr() -> None:
    assert "SIGNATURE" not in repr(ImageUrl("https://a.b/1?SIGNATURE"))


def test_the_size_is_checked_before_decoding() -> None:
    malformed = "A" * 20_001  # no base64 has this length
    with pytest.raises(BadImage, match="Image is larger than"):
        parse_image(malformed, LIMIT)
