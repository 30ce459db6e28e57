"""Server-Sent Events of a job.

Each event has the whole document, so a client that misses some events needs only the newest. The id of an event encodes
the state and progress that it shows. A client that reconnects with this id in ``Last-Event-ID`` gets the next event
that differs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import orjson
from fastapi.responses import Response, StreamingResponse

from clip_queue.api.job_client import JobClient
from clip_queue.api.job_document import document, ended
from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError, UnknownJob

HEARTBEAT = 10.0  # seconds without an event after which a comment is sent, so that the connection is kept
LONGEST = 3600.0  # seconds after which a stream ends; the client then reconnects


def response(
    client: JobClient, view: ops.View, last_event_id: str | None, *, heartbeat: float, longest: float = LONGEST
) -> Response:
    """The stream of a job's events after ``last_event_id``.

    Args:
        heartbeat: seconds without an event after which a comment is sent.
        longest: seconds after which the stream ends.
    """
    if ended(view) and last_event_id == event_id(view):
        return Response(status_code=204)  # no event will follow: this status tells an EventSource not to reconnect
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    stream = _stream(client, view.job.id, last_event_id, heartbeat, time.monotonic() + longest)
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


def event_id(view: ops.View) -> str:
    job = view.job
    return f"{job.state}-{job.attempts}-{job.done}-{job.failed}"


async def _stream(
    client: JobClient, job_id: str, shown: str | None, heartbeat: float, until: float
) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    state = None
    try:
        async with client.watch(job_id) as reply:
            while time.monotonic() < until:
                reply.clear()
                view = await client.store.execute(ops.view(job_id))
                if event_id(view) != shown:
                    shown = event_id(view)
                    name = "progress" if view.job.state == state else "state"
                    state = view.job.state
                    data = orjson.dumps(document(view)).decode()
                    yield f"id: {shown}\nevent: {name}\ndata: {data}\n\n".encode()
                if ended(view):
                    return
                if not await reply.wait(heartbeat):
                    yield b": alive\n\n"
    except UnknownJob:
        return
    except ClipError as error:
        # The status line is already sent. The stream ends, and the client reconnects with Last-Event-ID.
        yield f": {error.message}\n\n".encode()
