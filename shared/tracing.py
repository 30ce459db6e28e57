"""Spans, by OpenTelemetry: one trace from the caller's ``traceparent`` through the API, the queue and the worker.

Nothing is made or sent unless OpenTelemetry's own variables say where to (``OTEL_EXPORTER_OTLP_ENDPOINT``), and its SDK
is installed (extra ``tracing``). The framework makes the span of a request; the stages before the queue are spans below
it. The trace travels in the job's record, and the worker adds the job with its stages. No span holds an input or a key.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from clip_queue.shared.job import Job, JobResult
from clip_queue.version import __version__

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
LAST_SPANS = 3.0  # seconds that the last spans may take to be sent when a process ends
GIVING_UP = 1.0  # seconds that the SDK has to stop trying after that
_W3C = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("clip_queue", __version__)
_provider: TracerProvider | None = None
_exporter: OTLPSpanExporter | None = None


def wanted() -> bool:
    """Whether the variables ask for spans."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    return not off and exporter != "none" and any(os.environ.get(name) for name in ENDPOINTS)


def install(service: str) -> None:
    """Send this process's spans where the variables say.

    Args:
        service: its name among services, unless ``OTEL_SERVICE_NAME`` has another.
    """
    global _provider, _exporter
    if not wanted() or installed():
        return  # the last: somebody has set it up, such as ``opentelemetry-instrument``
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no spans are sent: OpenTelemetry's SDK is not installed (pip install 'clip-queue[tracing]')")
        return

    class Process(Resource):
        """One that is hashed once: the exporter asks for the hash at each span, and the SDK writes JSON for it."""

        def __hash__(self) -> int:
            return known

        __eq__ = Resource.__eq__

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    resource = Resource.create({"service.version": __version__, **named})
    known = hash(resource)
    _provider = TracerProvider(resource=Process(resource.attributes, resource.schema_url), shutdown_on_exit=False)
    _exporter = OTLPSpanExporter()
    _provider.add_span_processor(BatchSpanProcessor(_exporter))
    trace.set_tracer_provider(_provider)


def installed() -> bool:
    """Whether spans of this process are sent, by :func:`install` or by whoever has set it up."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def ours() -> bool:
    """Whether they are sent by :func:`install`, so that spans are all that is made of a request."""
    return _provider is not None


def request_is(method: str, route: str) -> None:
    """Name the span of a request, which is current, by its route, as the framework does."""
    span = trace.get_current_span()
    span.update_name(f"{method} {route}")
    span.set_attribute("http.route", route)


def stop() -> None:
    """Send what is left and end the sending thread. A receiver that is away or hangs holds it up for some four seconds:
    the SDK's own ends have no timeout, or one that it does not keep.
    """
    global _provider, _exporter
    if not _provider or not _exporter:
        return
    sending = threading.Thread(target=_provider.shutdown, name="last spans", daemon=True)
    sending.start()
    sending.join(LAST_SPANS)
    if sending.is_alive():
        # No further try; a request that is under way is left to the end of the process.
        _exporter.shutdown()  # type: ignore[no-untyped-call]
        sending.join(GIVING_UP)
    _provider = _exporter = None


def stage(name: str) -> AbstractContextManager[object]:
    """A stage of the request whose span is current. Without one that is recorded it costs nothing."""
    if not trace.get_current_span().is_recording():
        return nullcontext()
    return _Stage(name)


class _Stage(AbstractContextManager[None]):
    """A span that is the current one within a block, by half of what ``start_as_current_span`` costs.

    It says nothing of an exception, whose message may quote what a client sent; its kind is in the span of the request.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._span = _tracer.start_span(self._name)
        self._token = context.attach(trace.set_span_in_context(self._span))

    def __exit__(self, *_: object) -> None:
        context.detach(self._token)
        self._span.end()


def current() -> str:
    """The current trace as a ``traceparent``; empty if there is none, or it is not sampled: then a job has no span."""
    if not trace.get_current_span().get_span_context().trace_flags.sampled:
        return ""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """The current trace's id, in hex; empty if there is none."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def executed(job: Job, result: JobResult, worker: str) -> None:
    """Add a job that a worker has executed, up to now, to the trace that submitted it.

    The stages are those of its last item, one after the other. The time in the queue is by the store's clock.
    """
    if not job.trace:
        return
    end = time.time_ns()
    begin = end - int(1e9 * sum(result.timings.values()))
    attributes: dict[str, str | int] = {
        "clip_queue.job.id": job.id,
        "clip_queue.job.kind": str(job.kind),
        "clip_queue.job.items": job.total,
        "clip_queue.job.attempts": job.attempts,
        "clip_queue.model": job.model,
        "clip_queue.lane": str(job.lane),
        "clip_queue.worker": worker,
    }
    parent = _W3C.extract({"traceparent": job.trace})
    span = _tracer.start_span(f"job {job.kind}", parent, SpanKind.CONSUMER, attributes, start_time=begin)
    if not span.is_recording():
        return
    if result.error:
        span.set_status(StatusCode.ERROR)
        span.set_attribute("error.type", str(result.error.get("code", "error")))
    inside = trace.set_span_in_context(span)
    for name, seconds in result.timings.items():
        after = begin + int(1e9 * seconds)
        _tracer.start_span(name, inside, start_time=begin).end(after)
        begin = after
    span.end(end)
