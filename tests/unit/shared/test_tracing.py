"""When spans are made, and how long a process that ends waits for them; what they are, tests/integration has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from clip_queue.shared import tracing
from clip_queue.shared.job import Job, JobResult, Kind

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
def test_spans_are_made_where_the_variables_say_so(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wanted: bool
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.wanted() is wanted


def test_without_a_provider_nothing_is_recorded() -> None:
    assert (tracing.current(), tracing.trace_id()) == ("", "")
    with tracing.stage("read"):
        assert tracing.current() == ""
    tracing.executed(Job(Kind.EMBED_TEXT, "m", 1, trace="00-" + "a" * 32 + "-" + "b" * 16 + "-01"), JobResult(), "w")
    tracing.executed(Job(Kind.EMBED_TEXT, "m", 1, trace="no trace"), JobResult(timings={"queue": 1.0}), "w")
    tracing.stop()


TOLD = """
from opentelemetry import trace
from clip_queue.shared import tracing
from clip_queue.shared.job import Job, JobResult, Kind
assert not tracing.ours()
tracing.install("test")
assert tracing.ours()
kept = []
tracing._exporter.export = kept.extend
tracer = trace.get_tracer("test")
def execute(sampled):
    told = "00-" + "a" * 32 + "-" + "b" * 16 + f"-0{sampled}"
    job = Job(Kind.EMBED_TEXT, "m", 1, trace=told)
    tracing.executed(job, JobResult(timings={"queue": 0.5, "forward": 1.0}), "w")
execute(0)
tracing._provider.force_flush()
assert not kept
execute(1)
with tracer.start_as_current_span("request") as request:
    assert tracing.current().startswith("00-" + tracing.trace_id())
    tracing.request_is("POST", "/route")
    try:
        with tracing.stage("stage"):
            tracer.start_span("below").end()
            raise ValueError("a secret")
    except ValueError:
        assert trace.get_current_span() is request
with tracer.start_as_current_span("unsampled", trace.set_span_in_context(trace.NonRecordingSpan(
    trace.SpanContext(1, 2, False, trace.TraceFlags(0))))):
    assert trace.get_current_span().get_span_context().is_valid and tracing.current() == ""
tracing._provider.force_flush()
spans = {span.name: span for span in kept}
assert spans.keys() == {"queue", "forward", "job embed_text", "below", "stage", "POST /route"}, spans
parents = {name: span.parent.span_id for name, span in spans.items() if span.parent}
ids = {span.context.span_id: name for name, span in spans.items()}
assert {name: ids.get(id, id) for name, id in parents.items()} == {
    "queue": "job embed_text", "forward": "job embed_text", "job embed_text": int("b" * 16, 16),
    "below": "stage", "stage": "POST /route"}
assert "secret" not in spans["stage"].to_json() and spans["stage"].status.is_unset
assert dict(spans["POST /route"].attributes) == {"http.route": "/route"}
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
(one,) = encode_spans(kept).resource_spans
assert {a.key: a.value.string_value for a in one.resource.attributes}["service.name"] == "test"
"""


def test_what_a_trace_is_told() -> None:
    """A process of its own, since a provider is set once."""
    done = subprocess.run(
        [sys.executable, "-c", TOLD], env={**os.environ, **ENDPOINT}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("hangs", [False, True], ids=["away", "hangs"])
def test_a_receiver_holds_up_the_end_of_a_process_for_seconds_at_most(hangs: bool) -> None:
    """A process of its own, since a provider is set once."""
    ending = (
        "import time\nfrom clip_queue.shared import tracing\ntracing.install('test')\n"
        "with tracing._tracer.start_as_current_span('a'): pass\n"
        "began = time.monotonic()\ntracing.stop()\nprint(time.monotonic() - began)"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        port = silent.getsockname()[1]
        if not hangs:
            silent.close()
        env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", ending], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < tracing.LAST_SPANS + tracing.GIVING_UP + 1
    assert time.monotonic() - began < 45, "nor does the interpreter wait for what was left"


def test_without_the_sdk_a_line_says_what_to_install() -> None:
    code = (
        "import sys, logging\nlogging.basicConfig()\nsys.modules['opentelemetry.sdk.trace'] = None\n"
        "from clip_queue.shared import tracing\ntracing.install('test')\nassert tracing._provider is None"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **ENDPOINT}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'clip-queue[tracing]'" in done.stderr
