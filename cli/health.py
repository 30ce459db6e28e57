"""Health checks of containers: ``python -m clip_queue.cli.health api`` and ``… worker``; exit code 0 is well."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

import httpx

from clip_queue.shared.errors import ClipError
from clip_queue.shared.settings import get_settings
from clip_queue.shared.store import Store
from clip_queue.shared.workers import workers

TIMEOUT = 4.0  # seconds


def api() -> bool:
    """Whether the API of this container answers at all. ``PORT`` says where, 9001 if unset."""
    url = f"http://127.0.0.1:{os.environ.get('PORT', '9001')}/healthz"
    try:
        return httpx.get(url, timeout=TIMEOUT, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def worker() -> bool:
    """Whether a worker of this container holds its lease: a model loaded, its threads alive."""
    try:
        with contextlib.closing(Store.connect(get_settings())) as store:
            return any(live.host == socket.gethostname() for live in store.execute(workers()))
    except ClipError:
        return False


if __name__ == "__main__":
    sys.exit(0 if {"api": api, "worker": worker}[sys.argv[1]]() else 1)
