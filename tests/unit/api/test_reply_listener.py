"""The reply listener: who receives what, also when the connection is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import fakeredis
import pytest

from clip_queue.api.reply_listener import PendingReply, ReplyListener
from clip_queue.shared import ops, submissions
from clip_queue.shared.job import Inputs, Job, Kind
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore

from .service import until

ONE, TWO = "1" * 32, "2" * 32


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
async def listener(server: fakeredis.FakeServer) -> AsyncIterator[ReplyListener]:
    it = ReplyListener(fakeredis.FakeAsyncRedis(server=server), block=0.05)
    it.start()
    yield it
    server.connected = True
    await it.close()
    assert not it.alive


async def received(reply: PendingReply) -> bytes:
    assert await reply.wait(5)
    return reply.message


async def test_each_message_goes_to_all_who_expect_its_job(
    server: fakeredis.FakeServer, listener: ReplyListener
) -> None:
    client = fakeredis.FakeAsyncRedis(server=server)
    with listener.expect(ONE) as first, listener.expect(ONE) as second, listener.expect(TWO) as other:
        await client.rpush(listener.address, ONE + "result", ONE, "3" * 32 + "nobody")
        assert [await received(first), await received(second)] == [b"result", b"result"]
        assert not await other.wait(0)
    with listener.expect(ONE) as late:
        await client.rpush(listener.address, TWO + "x", ONE)
        assert await received(late) == b""


async def test_after_a_lost_connection_everyone_is_woken_and_messages_are_read_again(
    server: fakeredis.FakeServer, listener: ReplyListener, caplog: pytest.LogCaptureFixture
) -> None:
    client = fakeredis.FakeAsyncRedis(server=server)
    with listener.expect(ONE) as reply, listener.expect(TWO) as other:
        server.connected = False
        await until(lambda: "replies cannot be read" in caplog.text)
        await asyncio.sleep(0.5)  # in which it tries again
        assert caplog.text.count("replies cannot be read: ConnectionError") == 1
        assert not await reply.wait(0)
        server.connected = True
        assert [await received(reply), await received(other)] == [b"", b""]
        assert "replies are read again" in caplog.text
        await client.rpush(listener.address, ONE + "result")
        assert await received(reply) == b"result"
    assert listener.alive


async def test_the_list_of_a_process_that_has_died_does_not_stay(server: fakeredis.FakeServer) -> None:
    store = AsyncStore(fakeredis.FakeAsyncRedis(server=server))
    jobs = [Job(Kind.EMBED_TEXT, "m", 1, reply="cq:reply:dead", ttl=60_000) for _ in range(3)]
    await store.execute(submissions.accept([submissions.Submission(job, Inputs(["x"]), 9) for job in jobs]))
    await store.execute(ops.watch(jobs[0].id, "cq:reply:watcher"))
    for job in jobs:
        await store.execute(ops.cancel(job.id, ""))
    assert await store.client.llen("cq:reply:dead") == 3
    for left in "cq:reply:dead", "cq:reply:watcher", f"cq:watch:{jobs[0].id}":
        assert 0 < await store.client.pttl(left) <= 60_000
    await store.close()


async def test_a_listener_that_connects_itself_has_an_address_of_its_own() -> None:
    listeners = [ReplyListener.connect(Settings()) for _ in range(2)]
    assert listeners[0].address != listeners[1].address
    assert not any(it.alive for it in listeners)
    for it in listeners:
        await it.close()


async def test_a_wait_ends_with_a_message_or_with_its_time() -> None:
    reply = PendingReply()
    assert not await reply.wait(0.01)
    assert not await reply.wait(-1)
    asyncio.get_running_loop().call_later(0.01, reply.receive, b"one")
    assert await reply.wait(5)
    assert reply.message == b"one"
    assert not await reply.wait(0.01), "each message is told once"
    reply.receive(b"")
    assert await reply.wait(0)
    assert reply.message == b"one"


async def test_a_message_that_comes_as_the_time_is_up_is_told() -> None:
    for first, second in (("receive", "_wake"), ("_wake", "receive")):
        reply = PendingReply()
        waiting = asyncio.create_task(reply.wait(5))
        await asyncio.sleep(0)
        for each in (first, second):  # in one turn of the loop, before the wait goes on
            getattr(reply, each)(*([b"result"] if each == "receive" else []))
        assert await waiting
        assert not await reply.wait(0.01)


async def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    reply = PendingReply()
    waiting = asyncio.create_task(reply.wait(0.05))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0.1)
    assert not await reply.wait(0)
    reply.receive(b"later")
    assert await reply.wait(0)
