"""Jobs: submitted once, waited for, watched, cancelled."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from clip_queue import BadRequest, ClipQueueError, Embeddings, ItemError, JobFailed, StillRunning, Unavailable
from clip_queue.api.events import HEARTBEAT
from clip_queue.client.jobs import EventStream, to_body

from .conftest import FakeServer, Made, error


def document(state: str, **more: Any) -> dict[str, Any]:
    return {"id": "j-1", "state": state, "model": "m", "fingerprint": "f", "result": None, "error": None, **more}


def shown(state: str, **more: Any) -> httpx.Response:
    return httpx.Response(200, json=document(state, **more))


DONE = document(
    "succeeded", result={"embeddings": [[1, 2], None], "errors": [{"index": 1, "code": "c", "message": "m"}]}
)


def test_a_job_is_submitted_with_one_key_however_often_it_is_sent(make: Made, server: FakeServer) -> None:
    face = make()
    server.answers += [httpx.ReadError("lost"), error(503, "away"), httpx.Response(202, json=document("queued"))]
    job = face.do(face.client.submit, {"task": "embed_text", "text": ["a"]})
    assert (job.id, job.state) == ("j-1", "queued")
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    server.answers.append(httpx.Response(202, json=document("queued")))
    face.do(face.client.submit, {"task": "embed_text", "text": ["a"]})
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(keys) == 2, "another call is another job"
    server.answers.append(httpx.Response(200, json=document("running")))
    face.do(face.client.submit, {"task": "embed_text", "text": ["a"]}, idempotency_key="cat-7")
    assert server.requests[-1].headers["idempotency-key"] == "cat-7"


@pytest.mark.parametrize("key", ["", "x" * 201, "a\nb", "ключ"])
def test_a_key_that_cannot_be_sent_is_refused(make: Made, key: str) -> None:
    face = make()
    with pytest.raises(ValueError, match="idempotency key"):
        face.do(face.client.submit, {"task": "embed_text", "text": ["a"]}, idempotency_key=key)


def test_the_images_of_a_task_are_encoded_and_all_else_is_sent_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    path, wire = tmp_path / "a.png", {"type": "base64", "value": "YWJj"}
    for task, expected in (
        ({"task": "embed_image", "image": [path, b"abc"], "on_error": "skip"}, {"image": [wire, wire]}),
        ({"task": "embed_image", "image": path, "deadline_s": 5}, {"image": wire}),
        ({"task": "embed_image", "image": io.BytesIO(b"abc")}, {"image": wire}),
        ({"task": "embed_image", "image": [io.BytesIO(b"abc")]}, {"image": [wire]}),
        ({"task": "compare", "subject": str(path), "prompt": ["a", "b"]}, {"subject": wire}),
        ({"task": "compare", "subject": "a", "subject_type": "text", "prompt": "a"}, {}),
        ({"task": "compare", "subject": path, "prompt": {"x": path}, "prompt_type": "image"},
         {"subject": wire, "prompt": {"x": wire}}),
        ({"task": "embed_text", "text": ["a"]}, {}),
        ({"task": "embed_dataset", "source": "s3://bucket", "image": "of another kind", "options": {"n": [1]}}, {}),
    ):  # fmt: skip
        assert json.loads(to_body(task, 1000)) == {**task, **expected}
    with pytest.raises(BadRequest) as caught:
        to_body({"task": "embed_image", "image": [b"a", None]}, 1000)
    assert caught.value.index == 1
    with pytest.raises(TypeError):
        to_body({"task": "embed_dataset", "source": path}, 1000)


def test_a_named_image_that_cannot_be_sent_is_named() -> None:
    prompts = {"a cat": b"a", "a dog": "/no/such/file.png"}
    with pytest.raises(BadRequest, match=r"^Prompt 'a dog': .*No such file") as caught:
        to_body({"task": "compare", "subject": b"s", "prompt": prompts, "prompt_type": "image"}, 1000)
    assert caught.value.code == "bad_image"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("within", [lambda n: n, lambda n: [1, (n,)], lambda n: {"a": [{"b": n}]}])
def test_numbers_that_would_arrive_as_null_are_refused(
    make: Made, server: FakeServer, number: float, within: Callable[[float], Any]
) -> None:
    face = make()
    with pytest.raises(ValueError, match="field 'deadline_s' holds NaN or an infinite number"):
        face.do(face.client.submit, {"task": "embed_text", "text": ["a"], "deadline_s": within(number)})
    assert not server.requests


def test_a_result_is_waited_for(make: Made, server: FakeServer) -> None:
    face = make()
    server.answers += [shown("queued"), shown("running"), httpx.ReadTimeout("slow"), httpx.Response(200, json=DONE)]
    job = face.do(face.client.job, "j-1")
    found = face.do(job.result)
    assert isinstance(found, Embeddings)
    assert found.vectors[0].tolist() == [1, 2]
    assert np.isnan(found.vectors[1]).all()
    assert found.errors == [ItemError(1, "c", "m")]
    assert (found.model, found.fingerprints) == ("m", ("f",))
    assert server.requests[1].url.params["wait"] == "30.000"
    asked = len(server.requests)
    face.do(job.wait)
    face.do(job.result)
    assert len(server.requests) == asked, "it has ended, and its result is here"


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"similarity": [0.5, 0.25]}, [0.5, 0.25]),
        ({"similarity": {"a": 0.5}}, {"a": 0.5}),
        ({"rows": 100, "failed": 3}, {"rows": 100, "failed": 3}),
    ],
)
def test_results_of_other_kinds(make: Made, server: FakeServer, result: Any, expected: Any) -> None:
    face = make()
    server.answers.append(shown("succeeded", result=result))
    job = face.do(face.client.job, "j-1")
    found = face.do(job.result)
    assert (found.tolist() if isinstance(found, np.ndarray) else found) == expected


@pytest.mark.parametrize(
    "odd",
    [
        {"result": {"embeddings": [5]}},
        {"result": {"embeddings": [None], "errors": [{"index": 1}]}},
        {"result": [5]},
        {"result": {}, "error": "it is bad"},
    ],
)
def test_results_that_no_clip_queue_server_wrote(make: Made, server: FakeServer, odd: dict[str, Any]) -> None:
    face = make()
    server.answers.append(shown("succeeded", **odd))
    job = face.do(face.client.job, "j-1")
    with pytest.raises(ClipQueueError):
        face.do(job.result)


def test_what_a_job_does_not_say_is_empty(make: Made, server: FakeServer) -> None:
    face = make()
    found = {"embeddings": [None], "errors": [{"index": 0, "code": None, "message": None}]}
    server.answers += [shown("succeeded", result=found, model=None, fingerprint=None), shown("failed", error={})]
    embedded = face.do(face.do(face.client.job, "j-1").result)
    assert (embedded.errors, embedded.model, embedded.fingerprints) == ([ItemError(0, "", "")], "", ())
    with pytest.raises(JobFailed, match=r"^Job j-1 is failed\.$"):
        face.do(face.do(face.client.job, "j-1").result)


@pytest.mark.parametrize("state", ["failed", "cancelled", "expired"])
def test_a_job_without_a_result_says_why(make: Made, server: FakeServer, state: str) -> None:
    face = make()
    server.answers.append(shown(state, error={"code": "bad_image", "message": "It is bad.", "index": 4}))
    job = face.do(face.client.job, "j-1")
    with pytest.raises(JobFailed, match=f"Job j-1 is {state}: It is bad") as caught:
        face.do(job.result)
    assert (caught.value.state, caught.value.code, caught.value.index) == (state, "bad_image", 4)
    assert face.do(job.wait).state == state


def test_a_wait_may_end_before_the_job(make: Made, server: FakeServer) -> None:
    face = make()
    server.answers += [shown("running")] * 5
    job = face.do(face.client.job, "j-1")
    with pytest.raises(StillRunning, match=r"Job j-1 is running after 0.3 s"):
        face.do(job.result, timeout=0.3)
    with pytest.raises(TimeoutError):
        face.do(job.wait, timeout=0)
    assert len(server.requests) <= 4, "a server that does not wait is not asked all the time"


@pytest.mark.parametrize("state", ["running", "succeeded"])
def test_a_wait_has_an_end(make: Made, server: FakeServer, state: str) -> None:
    face = make()
    server.answers.append(shown(state))
    job = face.do(face.client.job, "j-1")
    for call in (job.wait, job.result):
        with pytest.raises(ValueError, match="timeout is a number of seconds"):
            face.do(call, timeout=float("nan"))
    assert len(server.requests) == 1


def test_a_job_is_cancelled(make: Made, server: FakeServer) -> None:
    face = make()
    server.answers += [shown("running"), shown("cancelled")]
    job = face.do(face.client.job, "j-1")
    assert face.do(job.cancel) is True
    assert (server.requests[-1].method, server.requests[-1].url.path) == ("DELETE", "/jobs/j-1")
    server.answers += [httpx.ReadError("lost"), error(409, "It has ended already."), shown("cancelled")]
    assert face.do(job.cancel) is True, "its answer was lost, and the second finds it done"
    server.answers += [error(409, "It has ended already."), shown("succeeded")]
    assert face.do(job.cancel) is False
    assert job.state == "succeeded"
    assert repr(job).endswith("Job('j-1', succeeded)")
    server.answers.append(error(404, "You have no such job."))
    with pytest.raises(BadRequest):
        face.do(job.refresh)


def test_an_id_stays_in_its_place_in_the_path(make: Made, server: FakeServer) -> None:
    face = make()
    server.answers.append(error(404, "no"))
    with pytest.raises(BadRequest):
        face.do(face.client.job, "../clip/x?y#z")
    assert server.requests[-1].url.raw_path == b"/jobs/..%2Fclip%2Fx%3Fy%23z"


@pytest.mark.parametrize("job_id", ["", ".", ".."])
def test_what_would_be_another_path_is_no_id(make: Made, server: FakeServer, job_id: str) -> None:
    face = make()
    with pytest.raises(ValueError, match="is no job's id"):
        face.do(face.client.job, job_id)
    assert not server.requests


def event(state: str, number: int) -> bytes:
    return f"id: e-{number}\nevent: state\ndata: {json.dumps(document(state, n=number))}\n\n".encode()


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that comes in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}


def stream(*events: bytes) -> httpx.Response:
    return httpx.Response(200, headers=STREAM, content=b"retry: 1000\n\n" + b"".join(events))


def test_events_go_on_where_the_connection_broke(make: Made, server: FakeServer) -> None:
    face = make()
    server.answers += [
        shown("queued"),
        stream(event("queued", 1), b": alive\n\n", event("running", 2)),
        httpx.ConnectError("refused"),
        error(503, "away"),
        stream(event("running", 3), event("succeeded", 4)),
    ]
    job = face.do(face.client.job, "j-1")
    assert [one["n"] for one in face.do(job.events)] == [1, 2, 3, 4]
    assert job.state == "succeeded"
    assert [request.headers.get("last-event-id") for request in server.requests[1:]] == [None, *["e-2"] * 3]
    server.answers.append(httpx.Response(200, headers=STREAM, stream=Pieces(b"retry: 1000\n\n", event("succeeded", 4))))
    assert [one["n"] for one in face.do(job.events)] == [4], "of one that is known to have ended"
    server.answers.append(httpx.Response(204))
    assert face.do(job.events) == []


def test_events_of_a_job_that_is_gone(make: Made, server: FakeServer) -> None:
    face = make(retry_for=0.2)
    server.answers += [shown("queued"), error(404, "You have no such job.")]
    job = face.do(face.client.job, "j-1")
    with pytest.raises(BadRequest, match="no such job"):
        face.do(job.events)
    server.answers += [httpx.ConnectError("refused")] * 9
    with pytest.raises(Unavailable):
        face.do(job.events)


def test_a_page_in_the_place_of_events_is_an_error(make: Made, server: FakeServer) -> None:
    face = make()
    server.answers += [shown("queued"), httpx.Response(200, html="<p>Please log in</p>")]
    job = face.do(face.client.job, "j-1")
    with pytest.raises(ClipQueueError, match="not the answer of a clip-queue server"):
        face.do(job.events)


def test_a_stream_may_be_silent_for_as_long_as_the_server_lets_it() -> None:
    assert EventStream("j", 1).request.patience >= HEARTBEAT


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_events_may_come_in_pieces(size: int) -> None:
    data = b"retry: 1000\r\n\r\n" + event("queued", 1).replace(b"\n", b"\r\n") + event("succeeded", 2)
    got = EventStream("j", 1)
    assert [one["n"] for i in range(0, len(data), size) for one in got.feed(data[i : i + size])] == [1, 2]
    assert got.over()
    with pytest.raises(ClipQueueError, match="clip-queue server"):
        list(got.feed(b"data: no json\n\n"))


@pytest.mark.parametrize("body", [{}, {"id": 7, "state": "queued"}, {"id": "j"}, {"id": "", "state": "queued"}])
def test_a_document_that_is_none_is_an_error(make: Made, server: FakeServer, body: dict[str, Any]) -> None:
    face = make()
    server.answers.append(httpx.Response(200, json=body))
    with pytest.raises(ClipQueueError, match="clip-queue server"):
        face.do(face.client.job, "j-1")
