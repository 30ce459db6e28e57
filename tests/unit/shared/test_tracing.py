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
