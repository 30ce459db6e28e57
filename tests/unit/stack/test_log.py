"""Logs of children: nothing that happens to a file reaches a child or its supervisor."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_queue.stack import log as logs
from clip_queue.stack.log import Log


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again with the next line."""
    monkeypatch.setattr(logs, "RETRY", 0.0)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def log(tmp_path: Path, said: list[str]) -> Log:
    return Log(tmp_path / "data" / "logs" / "one.log", said.append, limit=100)


def test_a_log_or_folder_that_was_deleted_is_made_anew(log: Log, said: list[str], tmp_path: Path) -> None:
    for delete in (log.path.unlink, lambda: shutil.rmtree(log.path.parent), lambda: shutil.rmtree(tmp_path / "data")):
        log.write(b"before\n")
        delete()
        log.write(b"after\n")
        assert log.path.read_text() == "after\n"
    assert said == []


def full(log: Log) -> None:
    log.path.symlink_to("/dev/full")


def folder(log: Log) -> None:
    log.path.mkdir()


def dangling(log: Log) -> None:
    log.path.symlink_to("/no/such/folder/file")


def fifo(log: Log) -> None:
    os.mkfifo(log.path)


def no_folder(log: Log) -> None:
    shutil.rmtree(log.path.parent)
    log.path.parent.write_text("a file")


def mend(log: Log) -> None:
    for path in (log.path, log.path.parent):
        if path.is_symlink() or path.is_file() or path.is_fifo():
            path.unlink()
        elif path == log.path and path.is_dir():
            path.rmdir()


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")


@pytest.mark.parametrize("harm", [pytest.param(full, marks=needs_full), folder, dangling, fifo, no_folder])
def test_a_log_that_cannot_be_written_is_said_once_and_resumes(
    log: Log, said: list[str], harm: Callable[[Log], None]
) -> None:
    log.write(b"first\n")
    log.path.unlink()
    harm(log)
    for _ in range(3):
        log.write(b"lost\n")
    assert log.tail() == "first\nlost\nlost\nlost", "what is lost on disk is still known"
    [line] = said
    assert line.startswith(f"{log.path} cannot be written (")
    mend(log)
    log.write(b"again\n")
    assert log.path.read_text() == "again\n"


def test_a_log_over_the_limit_is_moved_and_cut_where_it_cannot_be(log: Log, said: list[str]) -> None:
    old = log.path.with_suffix(".log.1")
    log.write(b"x" * 200)
    assert old.stat().st_size == 200
    old.unlink()
    (old / "not-empty").mkdir(parents=True)
    log.write(b"y" * 200)
    assert log.path.stat().st_size == 0
    log.write(b"z\n")
    assert log.path.read_text() == "z\n"
    assert said == []


def test_a_child_never_waits_for_its_log() -> None:
    """Its pipe is full and nobody reads: a print is lost, it neither blocks nor fails."""
    import subprocess

    read, write = os.pipe()
    os.set_blocking(write, False)
    code = "for n in range(50_000): print('x' * 100)\nimport logging; logging.error('y' * 100)"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=write, env={"PYTHONUNBUFFERED": "1"}, timeout=60, check=False
    )
    os.close(write)
    os.close(read)
    assert done.returncode == 0
