"""What is sent again, when, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate

import httpx
import pytest

from clip_queue import BadRequest, ClipQueueError, Unavailable
from clip_queue.client.steps import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Answer,
    Pause,
    Request,
    Retries,
    Steps,
    advance,
    ask,
    persistent,
)

from .conftest import FakeServer, Made, error

ASK = Request("GET", "/")


def retries(total: float, *, chance: Callable[[], float] = lambda: 1.0) -> tuple[Retries, list[float]]:
    now = [0.0]
    return Retries(total, clock=lambda: now[0], chance=chance), now


def test_pauses_double_up_to_a_limit_and_are_of_different_length() -> None:
    longest, _ = retries(1000)
    shortest, _ = retries(1000, chance=lambda: 0.0)
    for tries in range(20):
        usual = min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries)
        assert longest.pause() == Pause(usual)
        assert shortest.pause() == Pause(usual / 2)


def test_the_server_s_wish_is_not_undercut() -> None:
    assert retries(1000, chance=lambda: 0.0)[0].pause(5) == Pause(5)
    assert retries(1000)[0].pause(5) == Pause(6.25)


def test_it_ends_when_the_next_try_would_be_too_late() -> None:
    trying, now = retries(10)
    assert trying.pause(4)
    now[0] = 5
    assert trying.pause(5) is None
    now[0] = 9.8
    assert trying.pause() is None
    trying.reset()
    assert trying.pause(), "a new failure has its own time"
    assert retries(0)[0].pause() is None


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("7", 7), ("0", 0), ("1.5", 1.5), ("", 0), ("soon", 0), ("-3", 0), ("9" * 40, 0), ("nan", 0)],
)
def test_retry_after_is_read(said: str, seconds: float) -> None:
    assert Answer(429, httpx.Headers({"Retry-After": said}), b"").retry_after == seconds


def test_retry_after_may_be_a_date() -> None:
    in_a_minute = httpx.Headers({"retry-after": formatdate(time.time() + 60, usegmt=True)})
    assert 55 < Answer(503, in_a_minute, b"").retry_after <= 61
    assert Answer(503, httpx.Headers({"retry-after": formatdate(0, usegmt=True)}), b"").retry_after == 0


def test_the_core_asks_again_after_its_pauses() -> None:
    steps: Steps[Answer] = persistent(ask(ASK), 60)
    busy = Answer(429, {"retry-after": "2"}, b"{}")
    outcome: Answer | Unavailable | None = None
    for outcome in (busy, Unavailable("no answer")):
        assert advance(steps, None) == ASK
        pause = advance(steps, outcome)
        assert isinstance(pause, Pause)
        assert pause.seconds >= (2 if outcome is busy else FIRST_PAUSE / 2)
    assert advance(steps, None) == ASK


@pytest.mark.parametrize(
    "first",
    [
        lambda: error(429, "full", {"Retry-After": "0"}),
        lambda: error(503, "away"),
        lambda: httpx.Response(502, text="<html>bad gateway"),
        lambda: error(504, "late"),
        lambda: httpx.ConnectError("refused"),
        lambda: httpx.ReadError("reset"),
        lambda: httpx.ReadTimeout("slow"),
        lambda: httpx.RemoteProtocolError("disconnected"),
    ],
)
def test_what_may_pass_is_tried_again(make: Made, server: FakeServer, first: Callable[[], httpx.Response]) -> None:
    face = make()
    server.answers += [first(), first()]
    assert face.do(face.client.embed_texts, ["a"]).vectors.tolist() == [[1, 1]]
    assert len(server.requests) == 3
    assert len({request.content for request in server.requests}) == 1


def test_retry_after_is_waited_for(make: Made, server: FakeServer) -> None:
    face = make()
    server.answers.append(error(429, "full", {"Retry-After": "1"}))
    began = time.monotonic()
    face.do(face.client.embed_texts, ["a"])
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 409, 413, 415, 418, 422, 431, 500, 501])
def test_nothing_else_is(make: Made, server: FakeServer, status: int) -> None:
    face = make()
    server.answers.append(error(status, "no"))
    with pytest.raises(BadRequest if status < 500 else ClipQueueError) as caught:
        face.do(face.client.embed_texts, ["a"])
    assert not isinstance(caught.value, Unavailable)
    assert (caught.value.status, caught.value.message, caught.value.request_id) == (status, "no", "r-1")
    assert len(server.requests) == 1


def test_it_does_not_go_on_for_ever(make: Made, server: FakeServer) -> None:
    face = make(retry_for=0.5)
    server.answers += [httpx.ConnectError("[Errno 111] Connection refused")] * 50
    with pytest.raises(Unavailable, match=r"http://clip\.test did not answer .*Connection refused") as caught:
        face.do(face.client.embed_texts, ["a"])
    assert caught.value.status is None
    assert 2 <= len(server.requests) <= 5


def test_a_wait_that_is_too_long_is_told_at_once(make: Made, server: FakeServer) -> None:
    face = make(retry_for=5)
    server.answers.append(error(429, "full", {"Retry-After": "50"}))
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        face.do(face.client.embed_texts, ["a"])
    assert (caught.value.status, caught.value.retry_after) == (429, 50)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    "failure",
    [
        httpx.UnsupportedProtocol("no such scheme"),
        httpx.LocalProtocolError("Illegal header value b'Bearer s3cret'"),
        httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
    ],
)
def test_what_time_does_not_heal_is_told_at_once(make: Made, server: FakeServer, failure: Exception) -> None:
    face = make()
    server.answers.append(failure)
    with pytest.raises(ClipQueueError) as caught:
        face.do(face.client.embed_texts, ["a"])
    assert not isinstance(caught.value, Unavailable)
    assert "s3cret" not in str(caught.value)
    assert len(server.requests) == 1


def test_a_schema_s_errors_are_told_in_words() -> None:
    body = b'{"detail": [{"loc": ["body", "text", 3], "msg": "should be text", "type": "x"}, {"loc": [], "msg": "y"}]}'
    assert Answer(422, {}, body).error.message == "body.text.3: should be text; : y"
    odd = b'{"detail": [5, {"loc": null, "msg": 5}, {"loc": null, "msg": "z"}]}'
    assert Answer(422, {}, odd).error.message == ": z"
    assert Answer(422, {}, b'{"detail": [{"msg": null}]}').error.message == "The server answered with the status 422."
    assert Answer(404, {}, b'{"detail": "Not Found"}').error.message == "Not Found"
    assert Answer(502, {}, b"<html>").error.message == "The server answered with the status 502."
    told = Answer(400, {"x-request-id": "r"}, b'{"message": "m", "index": 3, "code": "bad_image"}').error
    assert (told.code, told.index) == ("bad_image", 3)
    assert [Answer(400, {}, b'{"index": %s}' % odd).error.index for odd in (b"-1", b"true", b"1.0")] == [None] * 3
    assert str(told) == "m (HTTP 400, code bad_image, item 3, request r)"


def test_a_wait_is_told_in_the_log(make: Made, server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "clip_queue.client")
    face = make()
    server.answers += [error(429, "full"), httpx.ConnectError("refused"), httpx.ConnectError("refused")]
    face.do(face.client.embed_texts, ["a"])
    server.answers.append(httpx.ConnectError("refused"))
    face.do(face.client.embed_texts, ["a"])
    told = [(one.levelname, one.getMessage()) for one in caplog.records if one.name == "clip_queue.client"]
    assert [level for level, _ in told] == ["INFO", "INFO", "INFO", "WARNING"]
    assert told[3][1].startswith("http://clip.test did not answer (ConnectError: refused). Trying again in 0.")
