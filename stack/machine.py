"""What this machine has to offer: GPUs, ports, a data folder."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

SMI_TIMEOUT = 10.0  # seconds nvidia-smi may take; a sick driver can hang it
LOCK = "lock"
FRESH = 60.0  # seconds
LOCK_WAIT = 5.0  # seconds for the Valkey of a killed supervisor to end and let its folder go


class StackError(Exception):
    """The stack cannot run; the message tells a person why and what to do."""


def visible_gpus() -> list[str]:
    """What to set ``CUDA_VISIBLE_DEVICES`` to, one entry a GPU; found without loading torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=SMI_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(gpus))]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """The address at which this machine finds what listens on ``host``, as a URL spells it."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def bind_problem(host: str, port: int) -> str | None:
    """Why ``host``:``port`` cannot be listened on; None: it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return None


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on, below those that outgoing connections take (a restart must find it free again).

    Raises:
        StackError: there is none.
    """
    for _ in range(100):
        port = random.randint(20_000, 30_000)
        if bind_problem(host, port) is None:
            return port
    raise StackError(f"cannot find a free port on {host}")


def sweep(prefix: str) -> None:
    """Remove the temporary data folders of this user that killed supervisors left: those that nobody holds any more."""
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK}"):
        folder = lock.parent
        try:
            mine = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
            # One that is being made may not be locked yet.
            if mine and time.time() - lock.lstat().st_mtime > FRESH:
                with lock.open("r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
        except OSError:  # held, or gone by now
            continue


class FolderLock:
    """A data folder, taken for this process and for children that inherit :attr:`fd`."""

    def __init__(self, folder: Path) -> None:
        """Make the folder and take it.

        Raises:
            StackError: it cannot be written, or is taken.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = (folder / LOCK).open("a+")
        except OSError as error:
            raise StackError(
                f"cannot write to {folder} ({error.strerror}): choose another folder with --data-dir"
            ) from None
        deadline = time.monotonic() + LOCK_WAIT
        while not self._taken():
            if time.monotonic() > deadline:
                self._file.seek(0)
                holder = self._file.read().strip() or "unknown"
                self._file.close()
                raise StackError(
                    f"another clip-queue (pid {holder}) uses {folder}: stop it, or choose another with --data-dir"
                )
            time.sleep(0.05)
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    @property
    def fd(self) -> int:
        return self._file.fileno()

    def release(self) -> None:
        self._file.close()

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
