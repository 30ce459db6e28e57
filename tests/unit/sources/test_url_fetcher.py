"""Pictures by URL, for threads: refused as the API refuses them, by one thread that can be ended and begun again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from clip_queue.shared.errors import BadImage, ClipError
from clip_queue.shared.fetch import Fetcher
from clip_queue.shared.settings import get_settings
from clip_queue.sources import url_fetcher as fetch
from clip_queue.sources.image_references import load


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    fetch.close()
    get_settings.cache_clear()
    assert not fetchers()


def fetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fetch"]


def refusal(url: str) -> str:
    with pytest.raises(BadImage) as caught:
        fetch.get(url)
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
    picture = load(url, "file", b"/", 100)
    assert callable(picture)
    with pytest.raises(BadImage):
        picture()


def test_a_private_address_is_refused_though_the_form_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_FETCH_ALLOW_IP_HOSTS", "true")
    get_settings.cache_clear()
    assert "not allowed" in refusal("https://127.0.0.1:9/a.jpg")
    assert "not allowed" in refusal("https://169.254.169.254/latest/meta-data")


def test_many_threads_share_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(32) as pool:
        said = list(pool.map(lambda n: refusal(f"https://10.0.0.{n % 250}/a.jpg"), range(500)))
        assert all("fetch_allow_ip_hosts" in each for each in said)
        monkeypatch.setattr(Fetcher, "get", echo)
        urls = [f"https://images.test/{n}" for n in range(500)]
        assert list(pool.map(fetch.get, urls)) == [url.encode() for url in urls]
    assert len(fetchers()) == 1


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SSL_CERT_FILE", "/no/such/file.pem", r"SSL_CERT_FILE, is wrong \(.*No such file"),
        ("CLIP_QUEUE_FETCH_ALLOW_NETWORKS", "10.0.0.0/33", "10.0.0.0/33"),
        ("CLIP_QUEUE_FETCH_ALLOW_HOSTS", "not a host", "not a host"),
    ],
)
def test_settings_that_cannot_be_used_are_said_to_be_wrong(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    for _ in range(2):
        with pytest.raises(ClipError, match=says) as caught:
            fetch.get("https://images.test/secret")
        assert not isinstance(caught.value, BadImage), "it is not the picture's fault"
        assert "secret" not in caught.value.message
    monkeypatch.delenv(name)
    get_settings.cache_clear()
    assert "fetch_allow_http" in refusal("http://images.test/a.jpg")


async def echo(self: Fetcher, url: str) -> bytes:
    await asyncio.sleep(0)
    return url.encode()


def slow(started: threading.Event) -> Callable[[Fetcher, str], object]:
    async def get(self: Fetcher, url: str) -> bytes:
        started.set()
        await asyncio.sleep(3600)
        return b""

    return get


def test_what_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_FETCH_TIMEOUT", "0.05")
    monkeypatch.setattr(fetch, "GRACE", 0.05)
    monkeypatch.setattr(Fetcher, "get", slow(threading.Event()))
    get_settings.cache_clear()
    assert "could not be decoded" in refusal("https://images.test/secret?signature=1")
    assert "secret" not in refusal("https://images.test/secret?signature=1")


def test_closing_ends_what_is_under_way_and_another_get_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()
    with monkeypatch.context() as patched, ThreadPoolExecutor(1) as pool:
        patched.setattr(Fetcher, "get", slow(started))
        waiting = pool.submit(refusal, "https://images.test/a")
        assert started.wait(10)
        fetch.close()
        assert "could not be decoded" in waiting.result(10)
    assert not fetchers()
    fetch.close()
    assert "fetch_allow_http" in refusal("http://images.test/a.jpg")
    assert len(fetchers()) == 1
