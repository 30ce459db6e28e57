"""One trace from the caller through API, queue and worker, as a real OTLP receiver gets it; no key in any of it."""

from __future__ import annotations

import gzip
import secrets
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.harness import Api, Stack, wait_for
from tests.images import base64_image, noise_image
from tests.jobs_api import ended
from tests.wire import embed_images, embed_texts, ok, refused

pytestmark = pytest.mark.timeout(600)

START = 240.0  # most seconds that a process takes to start on a loaded machine
ARRIVE = 60.0  # most seconds that spans take to come
KEY, TEXT = "s3cr3t-k3y", "a text nobody shall see"


class Span:
    def __init__(self, service: str, span: object) -> None:
        self.service, self.name = service, span.name  # type: ignore[attr-defined]
        self.trace, self.id = span.trace_id.hex(), span.span_id.hex()  # type: ignore[attr-defined]
        self.parent = span.parent_span_id.hex()  # type: ignore[attr-defined]
        self.begin, self.end = span.start_time_unix_nano, span.end_time_unix_nano  # type: ignore[attr-defined]
        self.failed = span.status.code == 2  # type: ignore[attr-defined]
        self.about = {
            a.key: a.value.string_value or a.value.int_value
            for a in span.attributes  # type: ignore[attr-defined]
        }


class Receiver:
    """A server of OTLP over HTTP, which keeps what comes."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                receiver.bodies.append((self.path, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="otlp receiver")
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def spans(self, trace: str) -> list[Span]:
        found = []
        for path, body in list(self.bodies):
            if path != "/v1/traces":
                continue
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = {a.key: a.value.string_value for a in resource.resource.attributes}
                found += [Span(named["service.name"], s) for scope in resource.scope_spans for s in scope.spans]
        return [span for span in found if span.trace == trace]

    def trace(self, trace: str, *names: str) -> dict[str, Span]:
        """The spans of a trace by name, once all of ``names`` are there."""

        def whole() -> dict[str, Span] | None:
            spans = {span.name: span for span in self.spans(trace)}
            return spans if spans.keys() >= set(names) else None

        spans: dict[str, Span] = wait_for(
            whole, ARRIVE, f"{names} of {trace}; there are {[s.name for s in self.spans(trace)]}"
        )
        return spans


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    it = Receiver()
    yield it
    it.close()


def caller(sampled: bool = True) -> tuple[str, str, dict[str, str]]:
    """A trace's id, the caller's span in it, and the header that says both."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, {"traceparent": f"00-{trace}-{span}-0{int(sampled)}"}


def test_one_trace_from_the_caller_to_the_forward_pass(
    own_stack: Stack, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    worker, api = own_stack.worker(), own_stack.api(api_keys=KEY)
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    auto = own_stack.api(api_keys=KEY)
    own_stack.ready(worker, api, auto, timeout=START)
    one_request(api, receiver)
    a_job_of_its_own(api, receiver)
    what_fails(api, receiver)
    by_the_frameworks_own_switch(auto, receiver)
    not_sampled(api, receiver)
    for service in (api, auto, worker):
        service.stop(START)
    for path, body in receiver.bodies:
        assert KEY.encode() not in body, path
        assert b"nobody shall" not in body, path
    for service in (api, auto, worker):
        assert KEY not in service.log.read_text()


STAGES = ("queue", "prepare", "wait", "forward")


def one_request(api: Api, receiver: Receiver) -> None:
    trace, span, headers = caller()
    with api.client(headers=headers) as http:
        ok(http.post(f"/clip/embed_text?api_key={KEY}&x=1", json={"text": [TEXT]}))
    spans = receiver.trace(trace, "POST /clip/embed_text", "read", "submit", "job embed_text", *STAGES)
    server, job = spans["POST /clip/embed_text"], spans["job embed_text"]
    assert server.parent == span
    assert server.about["url.query"] == "x=1"
    assert {spans[name].parent for name in ("read", "submit", "job embed_text")} == {server.id}
    assert {spans[name].parent for name in STAGES} == {job.id}
    assert (server.service, job.service) == ("clip-queue-api", "clip-queue-worker")
    assert job.about["clip_queue.model"] == "emoji-mini"
    assert job.about["clip_queue.job.items"] == 1
    ordered = [spans[name] for name in STAGES]
    assert all(a.end == b.begin for a, b in pairwise(ordered))
    assert not server.failed
    assert not job.failed


def a_job_of_its_own(api: Api, receiver: Receiver) -> None:
    trace, _, headers = caller()
    with api.client(headers={"Authorization": f"Bearer {KEY}"}) as http:
        body = {"task": "embed_image", "image": base64_image(noise_image())}
        job = http.post("/jobs", json=body, headers=headers)
        assert job.status_code == 202, job.text
        ended(http, job.json()["id"])
    spans = receiver.trace(trace, "POST /jobs", "job embed_image", *STAGES)
    assert spans["job embed_image"].parent == spans["POST /jobs"].id
    assert spans["job embed_image"].about["clip_queue.job.id"] == job.json()["id"]


def what_fails(api: Api, receiver: Receiver) -> None:
    trace, _, headers = caller()
    with api.client(headers={**headers, "Authorization": f"Bearer {KEY}"}) as http:
        refused(embed_images(http, [b"no image"]), 400)
    spans = receiver.trace(trace, "job embed_image")
    assert spans["job embed_image"].failed
    assert spans["job embed_image"].about["error.type"] == "bad_image"
    trace, _, headers = caller()
    with api.client(headers={**headers, "Authorization": f"Bearer {KEY}"}) as http:
        refused(http.post("/clip/embed_image", json={"image": {"type": "url", "value": "http://127.0.0.1/a"}}), 400)
    assert "fetch" in receiver.trace(trace, "fetch")


def by_the_frameworks_own_switch(auto: Api, receiver: Receiver) -> None:
    trace, span, headers = caller()
    with auto.client(headers=headers) as http:
        ok(http.post(f"/clip/embed_text?API_KEY=x{KEY}&api_key={KEY}", json={"text": [TEXT]}))
    spans = receiver.trace(trace, "POST /clip/embed_text", "submit", "job embed_text")
    assert spans["POST /clip/embed_text"].parent == span
    assert len([s for s in receiver.spans(trace) if s.name == "submit"]) == 1


def not_sampled(api: Api, receiver: Receiver) -> None:
    trace, _, headers = caller(sampled=False)
    after, _, later = caller()
    with api.client(headers={"Authorization": f"Bearer {KEY}"}) as http:
        for sent in (headers, later):
            http.headers.update(sent)
            ok(embed_texts(http, [TEXT]))
    receiver.trace(after, "POST /clip/embed_text", "job embed_text")
    assert receiver.spans(trace) == []


def test_a_receiver_that_is_away_or_hangs_holds_nothing_up(own_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # takes connections, never answers
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.server_port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        worker = own_stack.worker()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
        api = own_stack.api()
        own_stack.ready(worker, api, timeout=START)
        with api.client() as http:
            for number in range(20):
                ok(embed_texts(http, [f"text {number}"]))
        began = time.monotonic()
        for service in (api, worker):
            service.stop(60)
        assert time.monotonic() - began < 40
    finally:
        silent.server_close()
