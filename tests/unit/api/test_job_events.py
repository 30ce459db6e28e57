"""Server-Sent Events of a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from fastapi.responses import StreamingResponse

from clip_queue.api import events, job_document
from clip_queue.shared import ops, submissions
from clip_queue.shared.job import State

from .service import HOUR, WORKER, Service, until


@dataclass
class Event:
    id: str
    name: str
    state: str
    done: int


def parse(text: str) -> list[Event]:
    """The events of a stream, without its comments."""
    out = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "data" in fields:
            document = orjson.loads(fields["data"])
            out.append(Event(fields["id"], fields["event"], document["state"], document["items"]["done"]))
    return out


async def stream(
    service: Service, job_id: str, *, heartbeat: float = 10.0, longest: float = 60.0
) -> AsyncIterator[str]:
    view = await service.store.execute(ops.view(job_id))
    response = events.response(service.client, view, None, heartbeat=heartbeat, longest=longest)
    assert isinstance(response, StreamingResponse)
    async for part in response.body_iterator:
        assert isinstance(part, bytes)
        yield part.decode()


async def test_each_state_and_progress_is_an_event_until_the_job_ends(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.worker.running.clear()
    shown: list[ops.View] = []

    def counted(view: ops.View) -> dict[str, Any]:
        shown.append(view)
        return job_document.document(view)

    monkeypatch.setattr(events, "document", counted)
    job = await service.submit(text=["cat", "dog"])
    watch = f"cq:watch:{job['id']}"
    reading = asyncio.create_task(service.http.get(f"/jobs/{job['id']}/events"))
    await until(lambda: service.redis.exists(watch))
    await until(lambda: len(shown) == 1)
    (claimed,) = await service.worker.claim([job["id"]])
    await until(lambda: len(shown) == 2)
    await service.store.execute(ops.beat(WORKER, b"", HOUR, [(job["id"], 1, 0)]))
    await until(lambda: len(shown) == 3)
    assert claimed.job is not None
    assert claimed.inputs is not None
    await service.worker.finish(claimed.job, claimed.inputs)
    response = await asyncio.wait_for(reading, 5)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.text.startswith("retry: 1000\n\n")
    seen = parse(response.text)
    assert [(event.name, event.state, event.done) for event in seen] == [
        ("state", "queued", 0),
        ("state", "running", 0),
        ("progress", "running", 1),
        ("state", "succeeded", 2),
    ]
    last = {"Last-Event-ID": seen[-1].id}
    assert (await service.http.get(f"/jobs/{job['id']}/events", headers=last)).status_code == 204
    earlier = await service.http.get(f"/jobs/{job['id']}/events", headers={"Last-Event-ID": seen[1].id})
    assert parse(earlier.text) == [seen[-1]]


async def test_a_client_that_reconnects_does_not_get_the_same_event_again(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit()
    view = await service.store.execute(ops.view(job["id"]))
    shown = {"Last-Event-ID": events.event_id(view)}
    reading = asyncio.create_task(service.http.get(f"/jobs/{job['id']}/events", headers=shown))
    await until(lambda: service.redis.exists(f"cq:watch:{job['id']}"))
    await service.http.delete(f"/jobs/{job['id']}")
    assert [event.state for event in parse((await asyncio.wait_for(reading, 5)).text)] == [State.CANCELLED]


async def test_a_quiet_stream_has_comments_and_ends_after_its_longest_time(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit()
    parts = [part async for part in stream(service, job["id"], heartbeat=0.05, longest=0.2)]
    assert parts[0] == "retry: 1000\n\n"
    assert [event.state for event in parse(parts[1])] == ["queued"]
    assert len(parts) > 3
    assert set(parts[2:]) == {": alive\n\n"}


async def test_a_stream_ends_when_its_job_disappears(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit()
    parts = []
    async for part in stream(service, job["id"], heartbeat=0.05):
        parts.append(part)
        if part == ": alive\n\n":
            await service.store.execute(submissions.discard([job["id"]]))
    assert set(parts[2:]) == {": alive\n\n"}


async def test_a_stream_ends_when_the_store_cannot_be_reached(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit()
    parts = []
    async for part in stream(service, job["id"], heartbeat=0.05):
        parts.append(part)
        service.server.connected = len(parts) < 2
    assert parts[-1] == ": The job store cannot be reached (ConnectionError); try again.\n\n"
