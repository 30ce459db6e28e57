"""What a storm has left: in the store, and in the log of forward passes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import redis

from tests.faults import Faults

# Keys without a time to live, or with a very long one: one each, however much work goes through.
ETERNAL = ("cq:load", "cq:workers", "cq:jobs:", "cq:held", "cq:kept", "cq:totals", "unacked", "_kombu.binding")


def kinds_of_keys(client: redis.Redis) -> Counter[str]:
    """The number of keys of each kind, such as ``cq:job``."""
    keys: list[Any] = client.keys("*")
    return Counter(":".join(raw.decode().split(":")[:2]) for raw in keys)


def computed(faults: Faults) -> Counter[str]:
    """How often each text went into a forward pass."""
    return Counter(item for p in faults.passes() for item in p.items if " says " in item)


def left_in(client: redis.Redis, *, ever: bool) -> list[str]:
    """What the store holds and should not. ``ever``: all that has an end has ended."""
    left = [f"left: load {name!r} {n!r}" for name, n in client.hgetall("cq:load").items() if int(n)]
    keys: list[Any] = client.keys("*")
    for key in (raw.decode() for raw in keys):
        if key.startswith(ETERNAL):
            continue
        lasts = client.pttl(key)
        if lasts == -1 or (ever and lasts > 10_000):
            left.append(f"left: {key} ({'without an end' if lasts == -1 else f'for {lasts / 1000:.0f} s'})")
    return left
