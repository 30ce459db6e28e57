"""The store of a storm, and what befalls it."""

from __future__ import annotations

import signal
import time
from typing import Protocol

import redis

from tests.chaos.weather import Misfortune, Weather
from tests.harness import Service, Valkey
from tests.redis_servers import Guarded, RedisServer

FAILOVER = 30.0  # seconds that the Sentinels may take to agree on another master


class StormStore(Protocol):
    """``services`` are its processes, all of which run again when the storm is over."""

    name: str
    services: list[Service]

    def client(self) -> redis.Redis:
        """A client of the server that takes writes at the moment."""

    def misfortunes(self, weather: Weather) -> list[Misfortune]: ...


class OneValkey:
    """One server, every write of which is on disk before it is answered, so that even kill -9 may not lose one."""

    def __init__(self, valkey: Valkey) -> None:
        self.name = "Valkey"
        self.services: list[Service] = [valkey]
        self._valkey = valkey
        with self.client() as client:
            client.config_set("appendfsync", "always")
        valkey.command += ["--appendfsync", "always"]

    def client(self) -> redis.Redis:
        return self._valkey.client()

    def misfortunes(self, weather: Weather) -> list[Misfortune]:
        valkey, rng = self._valkey, weather.rng
        return [
            Misfortune("stop Valkey", lambda: weather.take_away(valkey, signal.SIGTERM, rng.uniform(0, 4))),
            Misfortune("kill Valkey", lambda: weather.take_away(valkey, signal.SIGKILL, rng.uniform(0, 4))),
            Misfortune("pause Valkey", lambda: weather.pause(valkey, rng.uniform(0.5, 3))),
        ]


class SentinelGroup:
    """A master with replicas under Sentinels. What was killed comes back as a replica."""

    def __init__(self, group: Guarded) -> None:
        self.name = "Redis under Sentinels"
        self.services: list[Service] = [*group.servers, *group.sentinels]
        self._group = group

    def client(self) -> redis.Redis:
        return self._group.client(self._master())

    def misfortunes(self, weather: Weather) -> list[Misfortune]:
        group, rng = self._group, weather.rng
        down = group.DOWN_AFTER / 1000

        def kill_master() -> None:
            old = self._master()
            with weather.away(old, signal.SIGKILL):
                self._failover(old)

        def pause_master() -> None:
            """It wakes and takes itself for the master, until a Sentinel tells it otherwise."""
            old = self._master()
            old.signal(signal.SIGSTOP)
            try:
                self._failover(old)
            finally:
                old.signal(signal.SIGCONT)

        def kill_replica() -> None:
            master = self._master()
            replica = rng.choice([server for server in group.servers if server is not master])
            weather.take_away(replica, signal.SIGKILL, rng.uniform(0, 2 * down))

        def kill_sentinel() -> None:
            weather.take_away(rng.choice(group.sentinels), signal.SIGKILL, rng.uniform(0, 4))

        return [
            Misfortune("kill the master", kill_master),
            Misfortune("pause the master until another is chosen", pause_master),
            Misfortune("kill a replica", kill_replica),
            Misfortune("kill a Sentinel", kill_sentinel),
        ]

    def _master(self) -> RedisServer:
        try:
            return self._group.master()
        except (ValueError, StopIteration):
            raise redis.ConnectionError("no Sentinel names a master") from None

    def _failover(self, old: RedisServer) -> None:
        until = time.monotonic() + FAILOVER
        while time.monotonic() < until:
            try:
                if self._master() is not old:
                    return
            except redis.RedisError:
                pass
            time.sleep(0.2)
