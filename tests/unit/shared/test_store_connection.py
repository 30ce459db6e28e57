"""The store's connection: scripts, failures, and what a caller is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fakeredis
import pytest
from redis.exceptions import OutOfMemoryError

from clip_queue.shared import ops
from clip_queue.shared.errors import MemoryFull, Unavailable
from clip_queue.shared.job import State
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore, Command, Store
from clip_queue.shared.workers import workers
from tests.harness import free_port

from .store_calls import DONE, accepted, claim, finish, new


def test_scripts_that_the_server_forgot_are_loaded_again(store: Store) -> None:
    (job_id,) = accepted(store, new())
    store.client.script_flush()
    assert store.execute(ops.view(job_id)).job.id == job_id


@pytest.mark.parametrize("face", ["in a thread", "in an event loop"])
async def test_a_job_that_ends_while_a_script_is_loaded_is_not_seen_without_its_result(
    face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = fakeredis.FakeServer()
    worker = Store(fakeredis.FakeRedis(server=server))
    (job_id,) = accepted(worker, new())
    claim(worker, job_id)
    if face == "in a thread":
        store = Store(fakeredis.FakeRedis(server=server))
        load = store.client.script_load
        monkeypatch.setattr(store.client, "script_load", lambda text: (finish(worker, job_id), load(text)))
        view, result = store.execute(ops.outcome(job_id))
    else:
        other = AsyncStore(fakeredis.FakeAsyncRedis(server=server))
        load_later = other.client.script_load
        monkeypatch.setattr(other.client, "script_load", lambda text: (finish(worker, job_id), load_later(text))[1])
        view, result = await other.execute(ops.outcome(job_id))
    assert view is not None
    assert (view.job.state, result) == (State.SUCCEEDED, DONE)


async def test_a_store_that_is_away_is_unavailable_and_its_password_is_not_told() -> None:
    settings = Settings(redis_url=f"redis://:s3cr3t@127.0.0.1:{free_port()}/0")  # type: ignore[arg-type]
    store, other = Store.connect(settings), AsyncStore.connect(settings)
    with pytest.raises(Unavailable) as told:
        store.execute(workers())
    with pytest.raises(Unavailable) as told_too:
        await other.execute(workers())
    for error in (told.value, told_too.value):
        assert "s3cr3t" not in str(error)
        assert error.retry_after
    store.close()
    await other.close()


async def test_after_a_failure_no_idle_connection_is_used_again() -> None:
    server = fakeredis.FakeServer()
    client = fakeredis.FakeAsyncRedis(server=server)
    store = AsyncStore(client)
    idle = await client.connection_pool.get_connection()
    await client.connection_pool.release(idle)
    assert idle.is_connected
    server.connected = False
    with pytest.raises(Unavailable):
        await store.execute(workers())
    assert not idle.is_connected
    server.connected = True
    assert await store.execute(workers()) == []
    await store.close()


def test_after_a_failure_no_idle_connection_of_a_thread_is_used_again() -> None:
    """It may lead to a master that a failover has made a replica: that one answers, and refuses all writing."""
    server = fakeredis.FakeServer()
    store = Store(fakeredis.FakeRedis(server=server))
    pool = store.client.connection_pool
    idle = pool.get_connection()
    idle.connect()
    pool.release(idle)
    assert idle._sock is not None
    server.connected = False
    with pytest.raises(Unavailable):
        store.execute(workers())
    assert idle._sock is None


async def test_a_full_memory_is_named_and_is_no_lost_connection() -> None:
    client = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    store = AsyncStore(client)

    async def refuse(commands: Sequence[Command]) -> list[Any]:
        return [OutOfMemoryError("command not allowed")]

    async def memory(section: str) -> dict[str, int]:
        return {"maxmemory": 12345}

    store._send, client.info = refuse, memory  # type: ignore[method-assign,assignment]
    with pytest.raises(MemoryFull) as told:
        await store.execute(workers())
    assert "Redis has reached its maxmemory of 12345 bytes" in told.value.message
    assert (told.value.status, told.value.code, told.value.retry_after) == (503, "memory_full", 5)
    await store.close()
