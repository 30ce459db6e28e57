"""Celery's transports when the server has reached its maxmemory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection
from kombu.transport import redis as kombu_redis
from kombu.transport import resolve_transport
from redis.exceptions import OutOfMemoryError

from clip_queue.shared import transport
from clip_queue.shared.broker import celery_app
from clip_queue.shared.settings import Settings


class Server:
    """Refuses all but scripts."""

    def __init__(self) -> None:
        self.scripts: list[tuple[Any, ...]] = []
        self.expiring: dict[str, int] = {}

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def eval(self, *args: Any) -> None:
        self.scripts.append(args)

    def pexpire(self, key: str, milliseconds: int) -> None:
        self.expiring[key] = milliseconds


@pytest.mark.parametrize("scheme", ["redis", "rediss", "sentinel"])
def test_every_redis_url_has_them(scheme: str) -> None:
    celery_app(Settings())
    found = resolve_transport(scheme)
    assert found in (transport.Transport, transport.SentinelTransport)
    assert issubclass(found, kombu_redis.SentinelTransport) == (scheme == "sentinel")
    assert Connection("redis://localhost").transport_cls == "redis"


def test_what_is_refused_is_sent_by_a_script_that_may(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()

    def refuse(*_: object, **__: object) -> None:
        raise OutOfMemoryError("no")

    channel = transport.Channel.__new__(transport.Channel)
    channel._expires = {"r": 10_000}
    monkeypatch.setattr(kombu_redis.Channel, "_put", refuse)
    monkeypatch.setattr(kombu_redis.Channel, "_queue_bind", refuse)
    monkeypatch.setattr(transport.Channel, "conn_or_acquire", lambda self: server)
    channel._put("q", {"body": "x", "properties": {"priority": 0}})
    channel._queue_bind("q", "q", "", "q")
    pushed, *bound = server.scripts
    assert pushed[0].startswith("#!lua flags=allow-oom\n")
    assert (pushed[2], pushed[3]) == ("q", "LPUSH")
    assert [(s[2], s[3]) for s in bound] == [
        ("_kombu.binding.q", "SADD"),
        ("_kombu.binding_permanent.q", "SADD"),
    ]
    assert len({s[4] for s in bound}) == 1
    channel._queue_bind("r", "r", "", "r")
    assert [s[2] for s in server.scripts[3:]] == ["_kombu.binding.r"], "or it would be kept for ever"


def test_an_answer_to_a_remote_command_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """kombu lets it expire only in the channel that has declared the list, which is that of who asked."""
    server = Server()
    channel = transport.Channel.__new__(transport.Channel)
    monkeypatch.setattr(kombu_redis.Channel, "_put", lambda *_, **__: None)
    monkeypatch.setattr(transport.Channel, "conn_or_acquire", lambda self: server)
    channel._put("clip.m.interactive", {})
    channel._put("x.reply.celery.pidbox", {})
    assert server.expiring == {"x.reply.celery.pidbox": 60_000}


def test_what_cannot_be_given_back_is_forgotten_and_written_to_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kombu pickles it into the folder for temporary files, once for each worker that ends while the server is away."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    channel = SimpleNamespace(do_restore=True, _restore=broken)
    qos = transport._QoS(channel)  # type: ignore[no-untyped-call]
    qos.append(SimpleNamespace(serializable=dict), "tag")
    qos.restore_unacked_once()
    qos.restore_unacked_once()
    assert (len(qos._delivered), list(tmp_path.iterdir())) == (0, [])


def broken(_: object) -> None:
    raise ConnectionError("away")
