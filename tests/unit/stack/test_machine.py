"""The machine: addresses, ports, GPUs and the lock of a data folder."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from clip_queue.stack.machine import (
    FolderLock,
    StackError,
    free_port,
    is_loopback,
    listening,
    reachable,
    remove_leftovers,
    visible_gpus,
)


def ipv6() -> bool:
    """Whether this machine has an IPv6 loopback address."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""))
    assert (reachable("0.0.0.0"), reachable("::1"), reachable("box")) == ("127.0.0.1", "[::1]", "box")


@contextmanager
def doors(host: str, port: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as opened:
        yield [opened.enter_context(door) for door in listening(host, port)]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("", "127.0.0.1"),
        pytest.param("::1", "::1", marks=pytest.mark.skipif(not ipv6(), reason="no IPv6 here")),
    ],
)
def test_a_port_is_had_by_one_from_the_start(host: str, address: str) -> None:
    with doors(host, 0) as opened:
        port = opened[0].getsockname()[1]
        with socket.create_connection((address, port), timeout=5) as client:
            client.sendall(b"early")
            with pytest.raises(StackError, match=r"^Address already in use$"):
                listening(host, port)
            taken, _ = opened[0].accept()
            with taken:
                assert taken.recv(5) == b"early", "who comes before anybody takes connections waits"
    with doors(host, port):  # at once, although what was connected is not forgotten yet
        pass


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses that names have here, besides those that they have anyway."""
    known: dict[str, list[str]] = {}
    look_up = socket.getaddrinfo

    def found(host: str | None, *args: Any, **kwargs: Any) -> list[Any]:
        return [one for address in known.get(host or "", [host]) for one in look_up(address, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return known


def test_a_name_has_one_port_at_all_of_its_addresses(names: dict[str, list[str]]) -> None:
    names["box"] = ["127.0.0.2", "127.0.0.1", "127.0.0.2", *(["::1"] if ipv6() else [])]
    with doors("box", 0) as opened:
        port = opened[0].getsockname()[1]
        assert {door.getsockname()[:2] for door in opened} == {(address, port) for address in names["box"]}
        assert len(opened) == len(set(names["box"]))
        assert opened[0].family == socket.AF_INET


def test_a_port_is_had_at_all_addresses_or_at_none(names: dict[str, list[str]]) -> None:
    names["box"], port = ["127.0.0.1", "127.0.0.2"], free_port()
    with doors("127.0.0.2", port):
        with pytest.raises(StackError, match=r"^Address already in use$"):
            listening("box", port)
        with doors("127.0.0.1", port):
            pass


def test_an_address_that_this_machine_has_not_is_left_out(names: dict[str, list[str]]) -> None:
    """As `localhost` has `::1` in a container without IPv6."""
    names["box"] = ["203.0.113.1", "127.0.0.1"]
    with doors("box", 0) as (door,):
        assert door.getsockname()[0] == "127.0.0.1"
    names["box"] = ["203.0.113.1", "203.0.113.2"]
    with pytest.raises(StackError, match="assign requested address"):
        listening("box", 0)


def test_what_cannot_be_bound_says_why() -> None:
    for host, why in (
        ("no-such-host.invalid", "not known|resolution|No address"),
        ("x" * 300, "no such address"),
        ("203.0.113.1", "assign requested address"),
    ):
        with pytest.raises(StackError, match=why):
            listening(host, 0)
    with doors("127.0.0.1", free_port()):
        pass


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "data")
    message = (
        f"another clip-queue (pid {os.getpid()}) uses {tmp_path / 'data'}: stop it, or choose another with --data-dir"
    )
    with pytest.raises(StackError, match=f"^{re.escape(message)}$"):
        FolderLock(tmp_path / "data", wait=0.1)
    lock.release()
    FolderLock(tmp_path / "data").release()
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0, "other users must not read it"


def test_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: One (UUID: x)'; echo 'GPU 1: Two (UUID: y)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert visible_gpus() == ["0", "1"]
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []


def test_temporary_folders_that_nobody_has_locked_are_removed_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    long_ago = (1, 1)
    left, locked, fresh, foreign, linked = (tmp_path / name for name in ("cq-1", "cq-2", "cq-3", "other", "cq-4"))
    for folder in (left, locked, fresh, foreign):
        (folder / "valkey").mkdir(parents=True)
        (folder / "lock").touch()
        os.utime(folder / "lock", None if folder is fresh else long_ago)
    linked.symlink_to(foreign)
    lock = FolderLock(locked)
    os.utime(locked / "lock", long_ago)
    remove_leftovers("cq-")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cq-2", "cq-3", "cq-4", "other"]
    assert (foreign / "lock").exists()
    lock.release()
    remove_leftovers("cq-")
    assert not locked.exists()


def test_no_port_is_found_at_an_address_of_another_machine() -> None:
    with pytest.raises(StackError, match=r"cannot find a free port on 203\.0\.113\.1"):
        free_port("203.0.113.1")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "data"
    message = f"cannot write to {folder} (Not a directory): choose another folder with --data-dir"
    with pytest.raises(StackError, match=re.escape(message)):
        FolderLock(folder)


def test_a_machine_without_nvidia_smi_has_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
