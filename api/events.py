"""Server-Sent Events of a job.

Each event is the whole document, so a client that missed some has lost nothing once it has the newest. An event's id
says what it showed: who reconnects with it in ``Last-Event-ID`` gets the next thing that differs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import orjson
from fastapi.responses import Response, StreamingResponse

from clip_queue.api.job_client import Door
from clip_queue.api.job_document import document, ended
from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError, UnknownJob

HEARTBEAT = 10.0  # seconds of silence before a comment says that the line is alive
LONGEST = 3600.0  # seconds after which a stream ends; the client reconnects and goes on


def response(door: Door, view: ops.View, last_event_id: str | None) -> Response:
    if ended(view) and last_event_id == event_id(view):
        return Response(status_code=204)  # nothing will follow: tells an EventSource not to reconnect
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(door, view.job.id, last_event_id), media_type="text/event-stream", headers=headers)


def event_id(view: ops.View) -> str:
    job = view.job
    return f"{job.state}-{job.attempts}-{job.done}-{job.failed}"


async def _stream(door: Door, job_id: str, shown: str | None) -> AsyncIterator[bytes]:
    until = time.monotonic() + LONGEST
    yield b"retry: 1000\n\n"
    state = None
    try:
        async with door.watching(job_id) as waiter:
            while time.monotonic() < until:
                waiter.news.clear()
                view = await door.store.run(ops.view(job_id))
                if event_id(view) != shown:
                    shown = event_id(view)
                    name = "progress" if view.job.state == state else "state"
                    state = view.job.state
                    data = orjson.dumps(document(view)).decode()
                    yield f"id: {shown}\nevent: {name}\ndata: {data}\n\n".encode()
                if ended(view):
                    return
                try:
                    await asyncio.wait_for(waiter.news.wait(), HEARTBEAT)
                except TimeoutError:
                    yield b": alive\n\n"
    except UnknownJob:
        return
    except ClipError as error:
        # The status line is gone; ending the stream makes the client come back with Last-Event-ID.
        yield f": {error.message}\n\n".encode()
