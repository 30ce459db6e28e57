"""The memory of the machine, and how much of it a Valkey gets."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup/memory.max")
SHARE = 4  # the Valkey gets one part of so many: models, workers and its own rewrites of its file need the others
LEAST = 256 * 2**20  # bytes


def machine_memory(cgroup: Path = CGROUP) -> int:
    """Bytes of memory that the processes of this machine, or of this container, may have."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = int(cgroup.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return physical
    return min(physical, limit)


def valkey_memory(setting: int, machine: int | None = None) -> int:
    """The ``maxmemory`` of a Valkey, bytes: the setting, or a part of the machine's memory where it is 0."""
    return setting or max(LEAST, (machine_memory() if machine is None else machine) // SHARE)
