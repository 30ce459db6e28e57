"""A request of many items is several jobs, a few at a time, and its answer is that of one."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from clip_queue.api import chunks
from clip_queue.api.chunks import AHEAD, CHUNK
from clip_queue.api.job_client import JobClient
from clip_queue.shared import ops
from clip_queue.shared.job import Kind, State

from .service import BAD, Service, serve, until

PATH = "/clip/embed_text"
MANY = 3 * CHUNK + 1  # four chunks


def texts(count: int = MANY) -> list[str]:
    """Texts of different lengths, by which the test's worker tells them apart."""
    return ["x" * (1 + i % 400) for i in range(count)]


async def jobs(service: Service) -> list[Any]:
    ids = [job_id for _, references in service.broker.sent for job_id in references]
    return [(await service.store.execute(ops.view(job_id))).job for job_id in ids]


async def test_the_rows_come_in_order(service: Service) -> None:
    sent = texts()
    answer = (await service.http.post(PATH, json={"text": sent})).json()
    assert [int(row[1]) for row in answer["embeddings"]] == [len(text) for text in sent]
    totals = [job.total for job in await jobs(service)]
    assert len(totals) == 4
    assert sum(totals) == MANY
    assert max(totals) - min(totals) <= 3, "the chunks are even"


async def test_as_many_as_fit_are_one_job(service: Service) -> None:
    assert (await service.http.post(PATH, json={"text": texts(CHUNK)})).status_code == 200
    assert [job.total for job in await jobs(service)] == [CHUNK]


async def test_only_a_few_chunks_are_in_the_queue_at_once() -> None:
    async with serve(max_queued_items=AHEAD * CHUNK) as service:
        service.worker.running.clear()
        asked = asyncio.create_task(service.http.post(PATH, json={"text": texts(8 * CHUNK)}))
        await until(lambda: sum(len(ids) for _, ids in service.broker.sent) == AHEAD)
        await asyncio.sleep(0.1)
        assert sum(len(ids) for _, ids in service.broker.sent) == AHEAD
        service.worker.running.set()
        assert (await asked).status_code == 200


async def test_a_request_whose_first_chunk_was_accepted_waits_for_room_for_the_others() -> None:
    async with serve(max_queued_items=CHUNK) as service:
        assert (await service.http.post(PATH, json={"text": texts()})).status_code == 200
    async with serve(max_queued_items=CHUNK, request_timeout=1.0) as service:
        service.worker.hanging.add(Kind.EMBED_TEXT)
        response = await service.http.post(PATH, json={"text": texts()})
        assert response.status_code in (429, 504), "it does not wait for ever"
    async with serve(max_queued_items=5) as service:
        service.worker.running.clear()
        before = asyncio.create_task(service.http.post(PATH, json={"text": texts(5)}))
        await until(lambda: service.broker.sent)
        assert (await service.http.post(PATH, json={"text": texts()})).status_code == 429
        service.worker.running.set()
        assert (await before).status_code == 200


async def test_a_chunk_that_waits_for_room_is_not_submitted_once_another_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    async def counted(self: JobClient, *given: Any, **more: Any) -> Any:
        asked.append(given)
        return await run(self, *given, **more)

    run = JobClient.run
    monkeypatch.setattr(JobClient, "run", counted)
    monkeypatch.setattr(chunks, "PAUSE", 60.0)  # so that only the failure wakes it
    async with serve(max_queued_items=CHUNK) as service:
        service.worker.running.clear()
        sent = asyncio.create_task(service.http.post(PATH, json={"text": [BAD, *texts(2 * CHUNK - 1)]}))
        await until(lambda: len(asked) == 2)
        await asyncio.sleep(0.1)
        service.worker.running.set()
        assert (await sent).status_code == 400
        assert len(asked) == 2


@pytest.mark.parametrize("place", [0, CHUNK + 5, MANY - 1])
async def test_a_bad_item_names_its_place_in_the_request(service: Service, place: int) -> None:
    sent = texts()
    sent[place] = BAD
    response = await service.http.post(PATH, json={"text": sent})
    assert response.status_code == 400
    assert response.json() == {"message": "refused by the worker", "code": "bad_input", "index": place}


async def test_the_first_of_several_bad_items_is_named_whichever_chunk_is_ready_first(service: Service) -> None:
    sent = texts()
    sent[CHUNK + 40] = sent[5] = BAD
    assert (await service.http.post(PATH, json={"text": sent})).json()["index"] == 5


async def test_after_an_error_the_other_chunks_are_cancelled(service: Service) -> None:
    held: list[list[str]] = []
    work = service.worker.work

    async def hold_the_second(ids: list[str]) -> None:
        held.append(ids)
        first = held[0][0]
        await work([job_id for job_id in ids if job_id == first])

    service.worker.work = hold_the_second  # type: ignore[method-assign,assignment]
    sent = texts()
    sent[0] = BAD
    assert (await service.http.post(PATH, json={"text": sent})).status_code == 400
    states = [job.state for job in await jobs(service)]
    assert states == [State.FAILED, State.CANCELLED]


async def test_bad_items_may_be_skipped_wherever_they_are_found(service: Service) -> None:
    sent: list[Any] = texts()
    sent[3], sent[CHUNK + 1], sent[-1] = None, BAD, "x" * 3000
    answer = (await service.http.post(PATH, json={"text": sent, "on_error": "skip"})).json()
    bad = [3, CHUNK + 1, MANY - 1]
    assert [error["index"] for error in answer["errors"]] == bad
    assert [i for i, row in enumerate(answer["embeddings"]) if row is None] == bad
    good = [(i, row) for i, row in enumerate(answer["embeddings"]) if row]
    assert all(int(row[1]) == len(sent[i]) for i, row in good)


async def test_a_chunk_of_bad_items_alone_is_no_reason_to_fail(service: Service) -> None:
    sent = [BAD] * CHUNK + texts(CHUNK)
    response = await service.http.post(PATH, json={"text": sent, "on_error": "skip"})
    assert response.status_code == 200
    assert [error["index"] for error in response.json()["errors"]] == list(range(CHUNK))
    sent = [BAD] * 2 * CHUNK
    response = await service.http.post(PATH, json={"text": sent, "on_error": "skip"})
    assert response.status_code == 400
    assert response.json()["index"] == 0


async def test_the_time_of_a_request_is_that_of_all_its_chunks() -> None:
    async with serve(request_timeout=0.5) as service:
        service.worker.running.clear()
        began = asyncio.get_running_loop().time()
        assert (await service.http.post(PATH, json={"text": texts()})).status_code == 504
        assert asyncio.get_running_loop().time() - began < 5


async def test_a_large_answer_is_written_in_pieces() -> None:
    from clip_queue.api.clip import PIECE, respond, written

    rows = np.random.default_rng(1).normal(size=(2 * PIECE + 3, 4)).astype(np.float32)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    whole = bytes(respond({"rows": await written(rows)}).body)
    ticking.cancel()
    assert whole == respond({"rows": rows}).body
    assert ticks >= 3
    assert bytes(respond(await written(rows[:0])).body) == b"[]"
