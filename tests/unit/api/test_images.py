"""The image of the wire: what is read, what is refused, and how it is said."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable

import pytest

from clip_queue.api.images import Url, load_images, parse_image
from clip_queue.shared.errors import BadImage, BadInput, ClipError
from clip_queue.shared.settings import Settings

LIMIT = 4096
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 3 + b"\xfb\xff\xfe"  # its base64 holds both + and /
TEXT = base64.b64encode(JPEG).decode()
SETTINGS = Settings(max_image_bytes=LIMIT)
CAUSE = "Could not load input image. Cause: "


def b64(value: object, kind: object = "base64") -> dict[str, object]:
    return {"type": kind, "value": value}


@pytest.mark.parametrize("kind", ["base64", "BASE64", "Base64"])
def test_the_type_is_case_insensitive(kind: str) -> None:
    assert parse_image(b64(TEXT, kind), LIMIT) == JPEG
    url = parse_image({"type": "uRL", "value": " https://example.org/a.png\n"}, LIMIT)
    assert isinstance(url, Url)
    assert url == "https://example.org/a.png"


@pytest.mark.parametrize(
    "prefix",
    [
        "data:image/jpeg;base64,",
        "data:image/JPEG;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:image/svg+xml;base64,",
        "data:image/vnd.microsoft.icon;base64,",
        "data:image/png;charset=utf-8;base64,",
        "data:image/png;name=a b.png;x=1;base64, ",
        "\n data:image/*;base64,",
    ],
)
def test_a_data_uri_of_any_image_subtype_is_read(prefix: str) -> None:
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
    url = parse_image(text, LIMIT)
    assert isinstance(url, Url)
    assert url == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "!!not base64!!",
        "not-an-image.",
        "A",
        "AAAAA",
        "data:text/plain;base64,aGVsbG8=",
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
    with pytest.raises(BadImage, match="pickled input") as caught:
        parse_image(b64("gASVAAAA", kind), LIMIT)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, "prompt[2] must"),
        (7, "prompt[2] must"),
        ([TEXT], "prompt[2] must"),
        (b"bytes", "prompt[2] must"),
        ({}, "prompt[2].type"),
        ({"value": TEXT}, "prompt[2].type"),
        ({"type": None, "value": TEXT}, "prompt[2].type"),
        ({"type": ["url"], "value": TEXT}, "prompt[2].type"),
        ({"type": "base64"}, "prompt[2].value"),
        ({"type": "base64", "value": None}, "prompt[2].value"),
        ({"type": "url", "value": 7}, "prompt[2].value"),
        ({"type": "base64", "value": ["SECRET"]}, "prompt[2].value"),
    ],
)
def test_a_wrong_shape_names_the_field_and_not_the_value(value: object, names: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_image(value, LIMIT, "prompt[2]")
    assert not isinstance(caught.value, BadImage)
    assert caught.value.message.startswith(names)
    assert "SECRET" not in caught.value.message


def test_the_size_limit_is_exact_and_counts_neither_prefix_nor_line_breaks() -> None:
    largest = base64.encodebytes(bytes(LIMIT)).decode()
    assert parse_image("data:image/png;base64," + largest, LIMIT) == bytes(LIMIT)
    for size in (LIMIT + 1, LIMIT + 2, LIMIT + 3, LIMIT * 9):
        with pytest.raises(BadImage, match=r"larger than 4096 bytes .*max_image_bytes"):
            parse_image(b64(base64.b64encode(bytes(size)).decode()), LIMIT)


def test_the_size_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_queue.api.images.binascii.a2b_base64", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="larger than"):
        parse_image("A" * 20_000, LIMIT)


class Fetcher:
    """Answers, or fails, as told; counts what began and what was cancelled."""

    def __init__(self, answers: dict[str, bytes | ClipError | asyncio.Event]) -> None:
        self.answers = answers
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.all_begun = asyncio.Event()

    async def get(self, url: str) -> bytes:
        self.begun.append(url)
        if len(self.begun) == len(self.answers):
            self.all_begun.set()
        try:
            await self.all_begun.wait()  # passes only if the fetches run at the same time
            answer = self.answers[url]
            if isinstance(answer, asyncio.Event):
                await answer.wait()
                return b"late"
        except asyncio.CancelledError:
            self.cancelled.append(url)
            raise
        if isinstance(answer, ClipError):
            raise answer
        return answer


def url(name: str) -> str:
    return f"https://a.b/{name}"


async def load(values: list[object], fetcher: Fetcher) -> list[bytes]:
    async with asyncio.timeout(10):
        return await load_images(values, fetcher, SETTINGS)


async def test_images_come_in_order_and_urls_at_the_same_time() -> None:
    fetcher = Fetcher({url("1"): b"one", url("2"): b"two"})
    assert await load([url("1"), b64(TEXT), {"type": "url", "value": url("2")}], fetcher) == [b"one", JPEG, b"two"]
    assert await load([], fetcher) == []


async def test_nothing_is_fetched_when_something_cannot_be_parsed() -> None:
    fetcher = Fetcher({url("1"): b"one"})
    with pytest.raises(BadImage) as caught:
        await load([url("1"), b64("!"), None], fetcher)
    assert caught.value.index == 1
    assert fetcher.begun == []


async def test_the_first_error_by_index_is_raised_and_the_rest_cancelled() -> None:
    bad: Callable[[str], BadImage] = BadImage.because
    fetcher = Fetcher({url("0"): b"", url("1"): bad("first"), url("2"): bad("second"), url("3"): asyncio.Event()})
    with pytest.raises(BadImage, match="first") as caught:
        await load([url("0"), url("1"), url("2"), url("3")], fetcher)
    assert caught.value.index == 1
    assert fetcher.cancelled == [url("3")]


async def test_a_single_image_has_no_index() -> None:
    for value in (b64("!"), url("1")):
        with pytest.raises(BadImage) as caught:
            await load([value], Fetcher({url("1"): BadImage.because("gone")}))
        assert caught.value.index is None
    with pytest.raises(BadInput, match=r"^image\.value must"):
        await load([b64(None)], Fetcher({}))
    with pytest.raises(BadInput, match=r"^image\[1\] must"):
        await load([b64(TEXT), None], Fetcher({}))


async def test_a_cancelled_request_cancels_its_fetches() -> None:
    fetcher = Fetcher({url("1"): asyncio.Event()})
    task = asyncio.create_task(load_images([url("1")], fetcher, SETTINGS))
    async with asyncio.timeout(10):
        await fetcher.all_begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert fetcher.cancelled == [url("1")]
