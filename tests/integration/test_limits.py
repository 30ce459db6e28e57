"""Limits, and fetching by URL, at an API of its own with other settings than the defaults."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import psutil
import pytest

from tests.harness import Api, Stack
from tests.images import bomb, noise_image
from tests.wire import embed_images, embed_texts, refused, same, vectors

CAUSE = "Could not load input image. Cause: "
IMAGE = noise_image(3)
BODY = 256 * 1024


class Site(BaseHTTPRequestHandler):
    """An image, what is none, and ways into this machine's network."""

    def do_GET(self) -> None:
        match self.path:
            case "/image":
                self.answer(200, IMAGE)
            case "/text":
                self.answer(200, b"<html>no image</html>")
            case "/large":
                self.answer(200, bytes(70_000))
            case "/loop":
                self.answer(302, Location="/loop")
            case "/inwards":
                self.answer(302, Location="http://10.0.0.1/image")
            case "/moved":
                self.answer(302, Location="/image")
            case _:
                self.answer(404, IMAGE)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on the tests' output."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def limited(served: tuple[Stack, Api]) -> Iterator[httpx.Client]:
    """A client of an API in front of the session's worker that may fetch from this machine."""
    api = served[0].api(
        max_body_bytes=BODY,
        max_image_bytes=60_000,
        max_items=2,
        max_texts=3,
        fetch_allow_http=True,
        fetch_allow_ip_hosts=True,
        fetch_allow_networks="127.0.0.0/8",
        fetch_deny_hosts="*.denied.example",
    )
    served[0].ready(api)
    with api.client() as http:
        yield http
    api.stop()


def fetched(http: httpx.Client, url: str) -> dict[str, Any]:
    return refused(http.post("/clip/embed_image", json={"image": {"type": "url", "value": url}}), 400)


def test_an_image_by_url_has_the_vector_of_its_bytes(limited: httpx.Client, site: str) -> None:
    inline = vectors(embed_images(limited, [IMAGE]))
    url, moved = f"{site}/image", f" {site}/moved "
    for sent in (url, {"type": "url", "value": url}, {"type": "URL", "value": moved}):
        same(vectors(limited.post("/clip/embed_image", json={"image": sent})), inline)


def test_a_url_that_answers_404_or_nobody_answers_is_refused(limited: httpx.Client, site: str) -> None:
    unreachable = CAUSE + "Data pointed by URL could not be decoded into image. "
    missing = fetched(limited, f"{site}/nothing")  # though its body is an image
    assert missing == {"message": unreachable + "Its server answered with status 404."}
    shut = fetched(limited, "http://127.0.0.1:1/image")
    assert shut == {"message": unreachable + "The connection was refused."}


def test_a_url_whose_body_is_no_image_is_refused(limited: httpx.Client, site: str) -> None:
    assert fetched(limited, f"{site}/text") == {"message": CAUSE + "Data is not image."}


def test_a_url_with_too_large_a_body_or_too_many_redirects_is_refused(limited: httpx.Client, site: str) -> None:
    assert "Image is larger than 60000 bytes" in fetched(limited, f"{site}/large")["message"]
    assert "redirects more than 3 times" in fetched(limited, f"{site}/loop")["message"]


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/image",
        "http://169.254.169.254/latest/meta-data",
        "http://192.168.1.1/image",
        "http://[::1]/image",
        "http://[64:ff9b::a00:1]/image",
        "http://[2002:a00:1::]/image",
        "http://[::ffff:10.0.0.1]/image",
        "{site}/inwards",
    ],
)
def test_an_address_that_is_not_global_is_refused(limited: httpx.Client, site: str, url: str) -> None:
    message = fetched(limited, url.replace("{site}", site))["message"]
    assert message == CAUSE + "URL points to a network destination that is not allowed."


def test_a_host_on_the_list_of_refused_ones_is_refused(limited: httpx.Client) -> None:
    assert "setting fetch_deny_hosts" in fetched(limited, "https://a.denied.example/image")["message"]


def test_one_bad_url_is_named_by_its_place(limited: httpx.Client, site: str) -> None:
    body = {"image": [f"{site}/image", f"{site}/text"]}
    assert refused(limited.post("/clip/embed_image", json=body), 400)["index"] == 1


def test_the_limits_are_the_settings(limited: httpx.Client) -> None:
    assert "at most 2 fit" in refused(embed_images(limited, [IMAGE] * 3), 400)["message"]
    assert "at most 3 fit" in refused(embed_texts(limited, ["a"] * 4), 400)["message"]
    body = {"subject": "a", "subject_type": "text", "prompt": ["a"] * 3}
    assert "at most 2 fit" in refused(limited.post("/clip/compare", json=body), 400)["message"]
    message = refused(embed_images(limited, [bytes(60_001)]), 400)["message"]
    assert message == CAUSE + "Image is larger than 60000 bytes (setting max_image_bytes)."


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_413_whether_its_length_is_announced_or_not(
    limited: httpx.Client, announced: bool
) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(2 * BODY // 4096):
            yield b"x" * 4096

    content = b"".join(chunks()) if announced else chunks()
    message = refused(limited.post("/clip/embed_text", content=content), 413)["message"]
    assert message == f"The request body is larger than {BODY} bytes (setting max_body_bytes)."
    assert vectors(embed_texts(limited, ["after it"])).shape[0] == 1


def test_a_177_megapixel_png_is_refused_from_its_header_in_no_time_and_no_memory(
    served: tuple[Stack, Api], http: httpx.Client
) -> None:
    stack, _ = served
    worker = next(psutil.Process(pid) for pid in stack.workers())
    large = bomb()
    assert len(large) < 1_000_000
    vectors(embed_images(http, [noise_image(), noise_image(1)]))  # its threads are warm
    before = worker.memory_info().rss
    grown, messages = 0, set()
    cpu = sum(worker.cpu_times()[:2])
    for _ in range(4):
        messages.add(refused(embed_images(http, [large]), 400)["message"])
        grown = max(grown, worker.memory_info().rss - before)
    assert messages == {CAUSE + "Image of 13300 × 13300 pixels is over the limit of 50000000."}
    assert grown < 64 * 2**20, "its pixels are 531 MB"
    assert sum(worker.cpu_times()[:2]) - cpu < 1.0, "decoding it takes seconds"
    assert vectors(embed_images(http, [noise_image()])).shape[0] == 1


def test_an_image_over_the_pixel_limit_but_within_twice_of_it_is_refused_too(http: httpx.Client) -> None:
    message = refused(embed_images(http, [noise_image(), bomb(8000, 7000)]), 400)
    assert message == {"message": CAUSE + "Image of 8000 × 7000 pixels is over the limit of 50000000.", "index": 1}


def test_an_image_too_narrow_to_be_resized_is_refused(http: httpx.Client) -> None:
    assert "too narrow" in refused(embed_images(http, [bomb(5000, 2)]), 400)["message"]
