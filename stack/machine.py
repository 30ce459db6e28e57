"""The machine: its GPUs, its ports, and the lock of a data folder."""

from __future__ import annotations

import contextlib
import errno
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

SMI_TIMEOUT = 10.0  # seconds that nvidia-smi may take; with a broken driver it can hang
OTHER_FOLDER = "choose another folder with --data-dir or CLIP_QUEUE_DATA_DIR"
LOCK = "lock"  # name of the lock file in a data folder
FRESH = 60.0  # seconds in which a folder may exist and not be locked yet
LOCK_WAIT = 5.0  # seconds that the Valkey of a killed supervisor has to end and release the folder
POLL_INTERVAL = 0.05  # seconds between attempts to lock a folder
MEMORY = "/dev/shm"  # noqa: S108, as a folder is made there with a name of its own
TEMPORARY = "clip-queue-"  # the beginning of the names of temporary folders
BACKLOG = 2048  # connections that wait to be accepted, as uvicorn has it
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # a name's IPv6 address where the machine has no IPv6
PORTS = (20_000, 30_000)  # below the ports of outgoing connections, so that a port is still free after a restart


class StackError(Exception):
    """The stack cannot run. The message says why and what to do."""


def visible_gpus() -> list[str]:
    """The GPUs, one value of ``CUDA_VISIBLE_DEVICES`` each. They are found without torch."""
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
    """Whether only this machine can reach a server that listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """The host part of a URL by which this machine reaches a server that listens on ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on ``host``:``port`` (0: one that is free), one for each address that a name has here.

    Whoever connects waits until somebody accepts.

    Raises:
        StackError: no server can listen there; the message is the reason.
    """
    doors: list[socket.socket] = []
    why = ""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with contextlib.ExitStack() as failed:
            for family, _, _, _, address in sorted(set(found), key=lambda one: one[0] != socket.AF_INET):
                at = (address[0], port, *address[2:])  # one port at all addresses
                try:
                    doors.append(failed.enter_context(socket.create_server(at, family=family, backlog=BACKLOG)))
                except OSError as error:
                    why = os.strerror(error.errno or 0)
                    if error.errno not in ABSENT:
                        raise StackError(why) from None
                else:
                    port = doors[-1].getsockname()[1]
            if not doors:
                raise StackError(why)
            failed.pop_all()
    except OSError as error:  # of the name
        raise StackError(error.strerror or str(error)) from None
    except (UnicodeError, OverflowError):  # no host name; no port
        raise StackError("no such address") from None
    return doors


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nobody listens.

    Raises:
        StackError: none was found.
    """
    for _ in range(100):
        port = random.randint(*PORTS)
        with contextlib.suppress(StackError):
            for door in listening(host, port):
                door.close()
            return port
    raise StackError(f"cannot find a free port on {host}")


def memory_folder() -> str:
    """The folder of files in memory (Linux), which no full disk concerns, else that of temporary files."""
    return MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else tempfile.gettempdir()


def temporary_folder(within: str | None = None) -> tempfile.TemporaryDirectory[str]:
    """A new temporary folder. Raises :class:`StackError` if there is no place for one."""
    try:
        return tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=within, ignore_cleanup_errors=True)
    except OSError as error:
        raise StackError(f"cannot make a temporary folder ({error.strerror}): set TMPDIR to one with room") from None


def remove_leftovers(prefix: str = TEMPORARY) -> None:
    """Remove the temporary folders that killed supervisors of this user have left: those that are not locked."""
    folders = {Path(tempfile.gettempdir()), Path(memory_folder())}
    for lock in (lock for folder in folders for lock in folder.glob(f"{prefix}*/{LOCK}")):
        folder = lock.parent
        try:
            mine = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
            # A new folder may not be locked yet.
            if mine and time.time() - lock.lstat().st_mtime > FRESH:
                with lock.open("r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
        except OSError:  # it is locked, or another process has removed it
            continue


class FolderLock:
    """The lock of a data folder. It is held by this process, and by children that inherit :attr:`fd`."""

    def __init__(self, folder: Path, *, wait: float = LOCK_WAIT) -> None:
        """Make the folder and lock it.

        Args:
            wait: longest wait for another process to release it, seconds.

        Raises:
            StackError: the folder cannot be written, or another process holds the lock.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = (folder / LOCK).open("a+")
        except OSError as error:
            raise StackError(f"cannot write to {folder} ({error.strerror}): {OTHER_FOLDER}") from None
        deadline = time.monotonic() + wait
        while not self._acquire():
            if time.monotonic() > deadline:
                self._file.seek(0)
                holder = self._file.read().strip() or "unknown"
                self._file.close()
                raise StackError(
                    f"another clip-queue (pid {holder}) uses {folder}: stop it, or choose another with --data-dir"
                )
            time.sleep(POLL_INTERVAL)
        try:
            self._file.truncate(0)
            self._file.write(str(os.getpid()))
            self._file.flush()
        except OSError as error:  # a full disk: Valkey could not write either
            self.release()
            raise StackError(f"cannot write to {folder} ({error.strerror}): {OTHER_FOLDER}") from None

    @property
    def fd(self) -> int:
        return self._file.fileno()

    def release(self) -> None:
        with contextlib.suppress(OSError):  # of what could not be written
            self._file.close()

    def _acquire(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
