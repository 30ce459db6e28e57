"""Commands are written by hiredis as redis-py writes them."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Connection
from redis.exceptions import DataError

from clip_queue.shared.lane import Lane
from clip_queue.shared.redis_client import async_client
from clip_queue.shared.redis_connections import LARGE, PackingConnection
from clip_queue.shared.settings import Settings


@pytest.mark.parametrize(
    "args",
    [
        ("PING",),
        (b"PING",),
        ("SCRIPT LOAD", "return 1"),
        (b"CONFIG SET", "save", ""),
        ("EVALSHA", "f" * 40, 0, "", b"", -1, 2**80, 1.5, -0.0, 1e22, float("nan"), float("inf")),
        ("SET", "ключ", "emoji \U0001f600\0\r\n", b"\0\r\n$3\r\n"),
        ("XADD", Lane.BACKGROUND, b"x" * LARGE),
        ("SET", "a", b"x" * (LARGE + 1), "b"),
        ("SET", "a", memoryview(b"abc"), 7),
    ],
)
def test_a_command_is_the_same_to_the_bit(args: tuple[Any, ...]) -> None:
    assert b"".join(PackingConnection().pack_command(*args)) == b"".join(Connection().pack_command(*args))
    many = [args, ("PING",), args]
    assert b"".join(PackingConnection().pack_commands(many)) == b"".join(Connection().pack_commands(many))


@pytest.mark.parametrize("wrong", [None, True, [1], {}])
def test_what_no_command_may_hold_is_refused_as_before(wrong: object) -> None:
    with pytest.raises(DataError, match="Invalid input of type"):
        PackingConnection().pack_command("GET", wrong)


def test_a_large_argument_is_not_copied() -> None:
    image = b"x" * (LARGE + 1)
    assert any(piece is image for piece in PackingConnection().pack_command("SET", "a", image))


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:1/0",
        "rediss://localhost:1/0",
        "unix:///tmp/redis.sock",
        "sentinel://localhost:1/0?master_name=m",
        "sentinel://localhost:1/0?master_name=m&ssl=true",
    ],
)
def test_each_way_to_redis_has_it(url: str) -> None:
    client = async_client(Settings(redis_url=url), max_connections=1)  # type: ignore[arg-type]
    made = client.connection_pool.make_connection()
    assert type(made).pack_command is PackingConnection.pack_command
