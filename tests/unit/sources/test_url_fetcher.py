"""Images by URL, for threads: refused as the API refuses them, by threads that can be ended and begun again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from clip_queue.shared.errors import BadImage, ClipError
from clip_queue.shared.fetch import Fetcher
from clip_queue.shared.settings import Settings
from clip_queue.sources import url_fetcher
from clip_queue.sources.image_references import load
from clip_queue.sources.url_fetcher import UrlFetcher

SETTINGS = Settings()
SECRET = "https://images.test/secret?signature=1"


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    url_fetcher.close()
    assert not fetchers()


def fetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == url_fetcher.THREAD]


def refusal(url: str, settings: Settings = SETTINGS) -> str:
    with pytest.raises(BadImage) as caught:
        url_fetcher.get(url, settings)
    return caught.value.message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://images.test/a.jpg", "fetch_allow_http"),
        ("https://127.0.0.1/a.jpg", "fetch_allow_ip_hosts"),
        ("https://localhost/a.jpg", "fetch_allow_bare_hosts"),
        (" https://[::1/a.jpg", "URL is invalid"),
        ("https://user:secret@images.test/a", "user name or password"),
    ],
)
def test_what_the_api_refuses_is_refused(url: str, says: str) -> None:
    assert says in refusal(url)
    image = load(url, "file", b"/", SETTINGS)
    assert callable(image)
    with pytest.raises(BadImage):
        image()


def test_a_private_address_is_refused_though_the_form_is_allowed() -> None:
    settings = Settings(fetch_allow_ip_hosts=True)
    assert "not allowed" in refusal("https://127.0.0.1:9/a.jpg", settings)
    assert "not allowed" in refusal("https://169.254.169.254/latest/meta-data", settings)


def test_many_threads_share_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(32) as pool:
        messages = list(pool.map(lambda n: refusal(f"https://10.0.0.{n % 250}/a.jpg"), range(500)))
        assert all("fetch_allow_ip_hosts" in each for each in messages)
        monkeypatch.setattr(Fetcher, "get", echo)
        urls = [f"https://images.test/{n}" for n in range(500)]
        assert list(pool.map(lambda url: url_fetcher.get(url, SETTINGS), urls)) == [url.encode() for url in urls]
    assert len(fetchers()) == 1


def test_other_settings_have_a_fetcher_of_their_own_and_the_oldest_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fetcher, "get", echo)
    url_fetcher.get(SECRET, SETTINGS)
    (first,) = fetchers()
    url_fetcher.get(SECRET, Settings(lease=9, read_threads=3))  # which no fetcher depends on
    assert fetchers() == [first]
    for n in range(1, url_fetcher.MAX_FETCHERS):
        url_fetcher.get(SECRET, Settings(fetch_timeout=n))
    assert len(fetchers()) == url_fetcher.MAX_FETCHERS
    url_fetcher.get(SECRET, SETTINGS)  # it is used, so it is no longer the oldest
    for n in range(1, 10):
        url_fetcher.get(SECRET, Settings(max_image_bytes=2000 + n))
        url_fetcher.get(SECRET, SETTINGS)
    assert len(fetchers()) == url_fetcher.MAX_FETCHERS
    assert first in fetchers()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SSL_CERT_FILE", "/no/such/file.pem", r"SSL_CERT_FILE, is wrong \(.*No such file"),
        ("CLIP_QUEUE_FETCH_ALLOW_NETWORKS", "10.0.0.0/33", "10.0.0.0/33"),
        ("CLIP_QUEUE_FETCH_ALLOW_HOSTS", "not a host", "not a host"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    settings = Settings()
    for _ in range(2):
        with pytest.raises(ClipError, match=says) as caught:
            url_fetcher.get(SECRET, settings)
        assert not isinstance(caught.value, BadImage), "it is not the image's fault"
        assert "secret" not in caught.value.message
    monkeypatch.delenv(name)
    assert "fetch_allow_http" in refusal("http://images.test/a.jpg", Settings())


async def echo(self: Fetcher, url: str) -> bytes:
    await asyncio.sleep(0)
    return url.encode()


def slow(started: threading.Event) -> Callable[[Fetcher, str], object]:
    async def get(self: Fetcher, url: str) -> bytes:
        started.set()
        await asyncio.sleep(3600)
        return b""

    return get


def test_an_answer_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fetcher, "get", slow(threading.Event()))
    fetcher = UrlFetcher(Settings(fetch_timeout=0.05), grace=0.05)
    try:
        began = time.monotonic()
        with pytest.raises(BadImage, match="could not be decoded") as caught:
            fetcher.get(SECRET)
        assert time.monotonic() - began < 5
        assert "secret" not in caught.value.message
    finally:
        fetcher.close()


def test_closing_ends_the_fetches_and_another_get_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()
    with monkeypatch.context() as patched, ThreadPoolExecutor(1) as pool:
        patched.setattr(Fetcher, "get", slow(started))
        waiting = pool.submit(refusal, "https://images.test/a")
        assert started.wait(10)
        url_fetcher.close()
        assert "could not be decoded" in waiting.result(10)
    assert not fetchers()
    url_fetcher.close()
    assert "fetch_allow_http" in refusal("http://images.test/a.jpg")
    assert len(fetchers()) == 1


def test_a_fetcher_that_was_closed_fetches_nothing() -> None:
    fetcher = UrlFetcher(SETTINGS)
    assert fetcher.alive
    fetcher.close()
    fetcher.close()
    assert not fetcher.alive
    with pytest.raises(BadImage):
        fetcher.get("https://images.test/a")


def test_a_bug_is_logged_without_the_url(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def get(self: Fetcher, url: str) -> bytes:
        raise KeyError(url)

    monkeypatch.setattr(Fetcher, "get", get)
    assert "could not be decoded" in refusal(SECRET)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "failed unexpectedly: KeyError" in caplog.text
    assert "raise KeyError(url)" in caplog.text, "the place is logged"
    assert "secret" not in caplog.text
    assert "signature" not in caplog.text
