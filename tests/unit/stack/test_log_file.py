"""One log file of several processes: whole lines with names, and errors that reach nobody."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

import pytest

from clip_queue.stack import log_file
from clip_queue.stack.log_file import LONGEST, LogFile
from clip_queue.stack.supervisor import Spec, Supervisor
from tests.harness import wait_for


def test_lines_are_whole_and_named_and_appended(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    file = LogFile(tmp_path / "log")
    file.write("valkey", b"first\nsec")
    file.write("worker-1", b"loaded\n")
    file.write("valkey", b"ond\nthe last")
    file.close()
    assert (tmp_path / "log").read_text().splitlines() == [
        "before",
        "valkey | first",
        "worker-1 | loaded",
        "valkey | second",
        "valkey | the last",
    ]


def test_a_line_without_an_end_is_not_held_for_ever(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    file.write("w", b"x" * (LONGEST + 1))
    assert (tmp_path / "log").stat().st_size == LONGEST + 1 + len("w | \n")
    file.close()


def test_lines_of_many_threads_and_files_do_not_mix(tmp_path: Path) -> None:
    files = [LogFile(tmp_path / "log") for _ in range(2)]

    def write(n: int) -> None:
        for _ in range(50):
            files[n % 2].write(str(n), (str(n) * 50 + "\n").encode())

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for file in files:
        file.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{n} | {str(n) * 50}" for n in range(4) for _ in range(50))


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogFile(tmp_path / "no folder" / "log")
    with pytest.raises(IsADirectoryError):
        LogFile(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device") as told:  # nobody reads it
        LogFile(tmp_path / "fifo")
    assert told.value.errno == errno.ENXIO


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    file = LogFile(Path("/dev/full"))
    for _ in range(3):
        file.write("w", b"a line\n")
    file.close()


def test_a_file_that_was_moved_is_made_anew_and_one_that_cannot_be_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "RETRY", 0.0)
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "log"
    file = LogFile(path)
    path.rename(tmp_path / "logs" / "log.1")
    file.write("w", b"one\n")
    assert path.read_text() == "w | one\n"
    (tmp_path / "logs").rename(tmp_path / "gone")
    file.write("w", b"lost\n")
    (tmp_path / "logs").mkdir()
    file.write("w", b"two\n")
    assert path.read_text() == "w | two\n"
    file.close()


def test_a_supervisor_writes_what_its_children_log_there_too(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    supervisor = Supervisor(tmp_path / "data", log_file=file)
    supervisor.start()
    try:
        supervisor.add(Spec("child", [sys.executable, "-c", "print('hello', flush=True); input()"]))
        wait_for(lambda: "child | hello" in (tmp_path / "log").read_text(), 60, "the child's line")
    finally:
        supervisor.stop()
        file.close()
    assert "hello" in next((tmp_path / "data" / "logs").glob("child.log*")).read_text()
