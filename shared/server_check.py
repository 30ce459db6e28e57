"""Whether the Redis that the settings name will do: looked at once, when a process starts."""

from __future__ import annotations

import re
from typing import Any

from clip_queue.shared.redis_errors import CLUSTER
from clip_queue.shared.store import Op

LEAST_VERSION = (7, 0)
SENTINEL = "The Redis URL names a Sentinel, not a server: write sentinel:// instead of redis://."
REPLICA = "The Redis URL names a replica, which cannot be written to: name its master, or Sentinels with sentinel://."


class WrongServer(Exception):
    """The server answers, but nothing can ever work on it as it is. The message says what to change."""


def server_check() -> Op[None]:
    """Raises :class:`WrongServer` for Redis Cluster, a Redis before 7, a replica, a Sentinel in a server's place."""

    def parse(replies: list[Any]) -> None:
        if problem := _problem(replies[0]):
            raise WrongServer(problem)

    return Op([("INFO",)], parse)


def _problem(about: dict[str, Any]) -> str | None:
    if about.get("redis_mode") == "sentinel":
        return SENTINEL
    if about.get("redis_mode") == "cluster" or str(about.get("cluster_enabled", 0)) == "1":
        return CLUSTER
    version = re.match(r"(\d+)\.(\d+)", str(about.get("redis_version", "")))
    if version and tuple(map(int, version.groups())) < LEAST_VERSION:
        return f"Redis {version.group()} is too old: 7.0 or later is needed, or Valkey."
    if about.get("role") == "slave":
        return REPLICA
    return None
