"""Redis as people run it: a server with TLS, passwords, users or a socket, and a master with replicas and Sentinels.

The servers are Debian's ``redis-server`` and ``redis-sentinel``, as processes of the test: the service that the package
may have started is left alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.harness import Service, free_port, wait_for

PASSWORD = "p@ss:w/rd;1"  # with all that a URL quotes
QUOTED = "p%40ss%3Aw%2Frd%3B1"

# In the continuous integration a machine without them is an error and nothing to be passed over.
needs_redis = pytest.mark.skipif(
    not (shutil.which("redis-server") and shutil.which("redis-sentinel")) and not os.environ.get("CI"),
    reason="needs redis-server and redis-sentinel: apt-get install redis-server redis-sentinel",
)


class RedisServer(Service):
    """A ``redis-server`` (or Sentinel) on a free port of the loopback address."""

    def __init__(self, folder: Path, name: str = "redis", *, program: str = "redis-server", **config: str) -> None:
        self.port = free_port()
        home = folder / name
        home.mkdir()
        lines = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(home), **config}
        self.config = home / "redis.conf"
        self.config.write_text("".join(f"{key.replace('_', '-')} {value}\n" for key, value in lines.items()))
        self.url = f"redis://127.0.0.1:{self.port}/0"
        super().__init__(name, [program, str(self.config)], folder)

    def started(self, **login: object) -> RedisServer:
        self.start()
        with redis.Redis(port=self.port, socket_timeout=5, **login) as client:  # type: ignore[arg-type]
            wait_for(lambda: self.alive and answers(client), 90, f"{self.name}:\n{self.tail()}")
        return self


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.AuthenticationError:
        return True
    except redis.RedisError:
        return False


@contextmanager
def server(folder: Path, *, login: dict[str, object] | None = None, **config: str) -> Iterator[RedisServer]:
    it = RedisServer(folder, save='""', **config)
    try:
        yield it.started(**(login or {}))
    finally:
        it.kill()


class Guarded:
    """A master, two replicas and three Sentinels, all of which ask for a password."""

    NAME = "jobs"
    DOWN_AFTER = 1500  # milliseconds of silence after which a Sentinel takes the master for gone

    def __init__(self, folder: Path) -> None:
        quoted = f'"{PASSWORD}"'
        common = {"requirepass": quoted, "masterauth": quoted, "save": '""', "appendonly": "yes"}
        common |= {"repl-diskless-sync-delay": "0"}
        self.servers = [RedisServer(folder, "redis-0", **common)]
        master = self.servers[0].port
        self.servers += [RedisServer(folder, f"redis-{n}", replicaof=f"127.0.0.1 {master}", **common) for n in (1, 2)]
        self.sentinels = [RedisServer(folder, f"sentinel-{n}", program="redis-sentinel") for n in range(3)]
        for sentinel in self.sentinels:
            with sentinel.config.open("a") as config:
                config.write(
                    f"sentinel monitor {self.NAME} 127.0.0.1 {master} 2\n"
                    f"sentinel auth-pass {self.NAME} {quoted}\n"
                    f"sentinel down-after-milliseconds {self.NAME} {self.DOWN_AFTER}\n"
                    f"sentinel failover-timeout {self.NAME} 6000\n"
                    f'requirepass "{PASSWORD}"\n'
                    f'sentinel sentinel-pass "{PASSWORD}"\n'
                )

    @property
    def url(self) -> str:
        """As Celery writes it, with a dead Sentinel in front."""
        hosts = [f"sentinel://:{QUOTED}@127.0.0.1:{port}" for port in (free_port(), *(s.port for s in self.sentinels))]
        return ";".join(hosts) + f"/0?master_name={self.NAME}&sentinel_password={QUOTED}"

    def start(self) -> None:
        for each in self.servers:
            each.started(password=PASSWORD)
        wait_for(lambda: self.replicas(self.servers[0]) == 2, 30, "two replicas")
        for each in self.sentinels:
            each.started(password=PASSWORD)
        wait_for(lambda: all(self.knows_all(s) for s in self.sentinels), 60, "Sentinels that know each other")

    def master(self) -> RedisServer:
        """The server that most Sentinels name."""
        named = [port for port in map(self._named, self.sentinels) if port]
        return next(s for s in self.servers if s.port == max(set(named), key=named.count))

    def replicas(self, server: RedisServer) -> int:
        with self.client(server) as client:
            info = client.info("replication")
            online = [info[f"slave{n}"]["state"] for n in range(int(info["connected_slaves"]))]
        return online.count("online")

    def client(self, server: RedisServer) -> redis.Redis:
        return redis.Redis(port=server.port, password=PASSWORD, socket_timeout=5)

    def knows_all(self, sentinel: RedisServer) -> bool:
        with self.client(sentinel) as client:
            about = client.sentinel_master(self.NAME)
        return (int(about["num-slaves"]), int(about["num-other-sentinels"])) == (2, 2)

    def _named(self, sentinel: RedisServer) -> int | None:
        try:
            with self.client(sentinel) as client:
                return int(client.sentinel_get_master_addr_by_name(self.NAME)[1])
        except (redis.RedisError, OSError, TypeError):
            return None

    def close(self) -> None:
        for each in (*self.sentinels, *self.servers):
            each.kill()


@contextmanager
def guarded(folder: Path) -> Iterator[Guarded]:
    it = Guarded(folder)
    try:
        it.start()
        yield it
    finally:
        it.close()
