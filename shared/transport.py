"""Celery's transports for Redis, as kombu has them, except that they go on when the server has reached its maxmemory.

A worker that starts then must be able to listen, and a job that was accepted before must be able to be sent again.
Both take a few bytes, and without them nothing would ever be freed. So what Redis refuses is sent once more, by a
script that may. Jobs themselves are refused by the store, before any message is sent. And what kombu reads in
transactions is read without: a full server takes no command into one, and a worker that has to connect anew would end.

And the answer to a remote command is forgotten after a while: who has asked may be gone, and kombu would keep it.

And messages that a worker cannot give back when it ends, since the server is away, are forgotten: they only name jobs,
which the reconciler sends again. kombu would write them to a file beside other temporary ones, and leave it there.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps
from redis.exceptions import OutOfMemoryError

REPLIES = ".reply.celery.pidbox"  # the end of the names of lists with answers to remote commands
REPLY_TTL = 60  # seconds
_ANYWAY = "#!lua flags=allow-oom\nreturn redis.call(ARGV[1], KEYS[1], ARGV[2])"


class _QoS(virtual.QoS):
    """The messages that are not acknowledged, in this process's memory."""

    def restore_unacked_once(self, stderr: Any = None) -> None:  # noqa: ARG002 - kombu's signature
        self._on_collect.cancel()
        self._flush()  # type: ignore[no-untyped-call]
        self.restore_unacked()  # type: ignore[no-untyped-call]


class _Anyway:
    """What both channels add. ``conn_or_acquire`` and the names of keys are kombu's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.ack_emulation:  # type: ignore[attr-defined]
            setattr(self, "QoS", _QoS)  # noqa: B010 - both channels have it

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        try:
            super()._put(queue, message, **options)  # type: ignore[misc]
        except OutOfMemoryError:
            priority = self._get_message_priority(message, reverse=False)  # type: ignore[attr-defined]
            self._write("LPUSH", self._q_for_pri(queue, priority), dumps(message))  # type: ignore[attr-defined]
        if queue.endswith(REPLIES):
            with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
                client.pexpire(queue, 1000 * REPLY_TTL)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[misc]
        except OutOfMemoryError:
            member = self.sep.join([routing_key or "", pattern or "", queue or ""])  # type: ignore[attr-defined]
            prefixes = [self.keyprefix_queue]  # type: ignore[attr-defined]
            if queue not in self._expires:  # type: ignore[attr-defined]
                prefixes.append(self.keyprefix_binding_permanent)  # type: ignore[attr-defined]
            for prefix in prefixes:
                self._write("SADD", prefix % (exchange,), member)

    def _size(self, queue: str) -> int:
        return sum(self._ask("LLEN", queue))

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return any(self._ask("EXISTS", queue))

    def _ask(self, command: str, queue: str) -> list[int]:
        """The answers of the lists that a queue has, one a priority."""
        with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
            pipe = client.pipeline(transaction=False)
            for priority in self.priority_steps:  # type: ignore[attr-defined]
                pipe.execute_command(command, self._q_for_pri(queue, priority))  # type: ignore[attr-defined]
            answers: list[int] = pipe.execute()
            return answers

    def _write(self, command: str, key: str, value: str) -> None:
        with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
            client.eval(_ANYWAY, 1, key, command, value)


class Channel(_Anyway, kombu_redis.Channel):
    pass


class SentinelChannel(_Anyway, kombu_redis.SentinelChannel):
    pass


class Transport(kombu_redis.Transport):
    Channel = Channel


class SentinelTransport(kombu_redis.SentinelTransport):
    Channel = SentinelChannel


def install() -> None:
    """Make these the transports of Redis's URLs in this process."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:{SentinelTransport.__name__}"
