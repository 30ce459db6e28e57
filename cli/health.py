"""Health checks of containers: ``python -m clip_queue.cli.health api`` or ``… worker``. Exit code 0 means healthy."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

import httpx

from clip_queue.shared import startup
from clip_queue.shared.errors import ClipError
from clip_queue.shared.redis_url import BadRedisUrl
from clip_queue.shared.settings import Settings, get_settings
from clip_queue.shared.store import Store
from clip_queue.shared.workers import workers

TIMEOUT = 4.0  # seconds
PORT = "9001"  # of the API, if the environment variable PORT is not set


def api() -> bool:
    """Whether the API of this container answers. Its port is the environment variable ``PORT``, or 9001."""
    url = f"http://127.0.0.1:{os.environ.get('PORT', PORT)}/healthz"
    try:
        return httpx.get(url, timeout=TIMEOUT, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def worker(settings: Settings | None = None) -> bool:
    """Whether a worker of this container holds its lease, so its models are loaded and its threads run."""
    try:
        with contextlib.closing(Store.connect(settings or startup.load(get_settings))) as store:
            return any(live.host == socket.gethostname() for live in store.execute(workers()))
    except ClipError:
        return False


if __name__ == "__main__":
    checks = {"api": api, "worker": worker}
    if sys.argv[1:] not in ([name] for name in checks):
        sys.exit(f"usage: python -m clip_queue.cli.health {' | '.join(checks)}")
    try:
        sys.exit(0 if checks[sys.argv[1]]() else 1)
    except (startup.CannotWork, BadRedisUrl) as error:
        startup.stop("clip-queue health", error)
