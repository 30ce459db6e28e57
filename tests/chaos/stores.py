"""The store of a storm, and what befalls it."""

from __future__ import annotations

import signal
from typing import Protocol

import redis

from tests.chaos.weather import Misfortune, Weather
from tests.harness import Service, Valkey


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
