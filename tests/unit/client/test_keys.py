"""Where the client takes URL and key from, and that the key is seen nowhere but in its header."""

from __future__ import annotations

import io
import logging
import traceback

import httpx
import pytest

from clip_queue import Client, ClientLimits, ClipQueueError
from clip_queue.client.transport import Server

from .conftest import FakeServer, Made, error

KEY = "s3cret-ключ"


def server_of(url: str | None = None, api_key: str | None = None) -> Server:
    return Server(url, api_key, 1, 1, 1, None)


def test_the_key_goes_into_the_header_alone(make: Made, server: FakeServer) -> None:
    face = make(api_key=KEY)
    face.do(face.client.embed_texts, ["a"])
    (request,) = server.requests
    assert request.headers.raw.count((b"Authorization", f"Bearer {KEY}".encode())) == 1
    assert KEY not in str(request.url)
    assert KEY.encode() not in request.content
    assert request.headers["user-agent"].startswith("clip-queue-client/")


def test_without_a_key_there_is_no_header(make: Made, server: FakeServer) -> None:
    face = make()
    face.do(face.client.embed_texts, ["a"])
    assert "authorization" not in server.requests[0].headers


def test_url_and_key_may_come_from_the_environment(
    make: Made, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIP_QUEUE_API_KEY", KEY)
    face = make()
    face.do(face.client.embed_texts, ["a"])
    assert server.requests[-1].headers["authorization"].startswith("Bearer s3cret")
    face = make(api_key="")
    face.do(face.client.embed_texts, ["a"])
    assert "authorization" not in server.requests[-1].headers, "an argument goes before the environment"
    assert server_of().url == "http://127.0.0.1:9001"
    monkeypatch.setenv("CLIP_QUEUE_URL", "https://clip.example.org/base/")
    assert server_of().url == "https://clip.example.org/base"
    assert server_of("http://other:1").url == "http://other:1"
    assert server_of(" http://other:1/\n").url == "http://other:1"


def test_the_key_is_seen_nowhere(make: Made, server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    face = make(api_key=KEY, retry_for=0.1)
    said = io.StringIO()
    for answer in (error(401, "Unauthorized api_key"), httpx.ConnectError("refused"), httpx.LocalProtocolError("no")):
        server.answers += [answer] * 3
        with pytest.raises(ClipQueueError) as caught:
            face.do(face.client.embed_texts, ["a"])
        traceback.print_exception(caught.value, file=said)
        found: BaseException | None = caught.value
        while found:
            assert not hasattr(found, "request"), "httpx's error, whose request has the header"
            found = found.__cause__ or found.__context__
        server.answers.clear()
    shown = said.getvalue() + repr(face.client) + str(vars(face.client)) + str(vars(face.client._server)) + caplog.text
    assert "HTTP Request: POST" in caplog.text
    assert "s3cret" not in shown
    assert repr(face.client).endswith("Client('http://clip.test')")


@pytest.mark.parametrize("key", ["s3cret\nb", " s3cret", "s3cret ", "s3cret\x7f", "s3cret\u2028b"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(key: str) -> None:
    with pytest.raises(ValueError, match="The API key") as caught:
        server_of(api_key=key)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:9001",
        "ftp://host",
        "http://",
        "http://host:0",
        "http://host:99999999",
        "http://[::1",
        "http://user:s3cret@host",
        "http://host/?api_key=s3cret",
        "http://host/#s3cret",
        "http://s3\ncret",
        " ",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_unseen(url: str) -> None:
    with pytest.raises(ValueError, match="The server's URL") as caught:
        server_of(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"retry_for": -1},
        {"concurrency": 0},
        *({name: float("nan")} for name in ("timeout", "retry_for", "concurrency")),
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="concurrency at least 1"):
        Client(**wrong)  # type: ignore[arg-type]


def test_limits_are_a_client_s_own() -> None:
    limits = ClientLimits(images=5)
    one = Server(None, None, 1, 1, 1, limits)
    one.limits.images = 3
    assert limits.images == 5
    with pytest.raises(ValueError, match="At least one item"):
        ClientLimits(texts=0)
