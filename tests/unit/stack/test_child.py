"""The launcher of child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from clip_queue.stack import child

LAUNCHER = [sys.executable, "-I", "-S", str(Path(child.__file__))]


def launch(parent: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCHER, str(parent), "5", "0", "-1", *command], capture_output=True, text=True, timeout=30
    )


def test_it_becomes_the_command() -> None:
    ended = launch(os.getpid(), sys.executable, "-c", "import os; print(os.getppid())")
    assert (ended.stdout, ended.returncode) == (f"{os.getpid()}\n", 0)


def test_a_command_that_does_not_exist_is_named() -> None:
    ended = launch(os.getpid(), "no-such-command")
    assert (ended.stderr, ended.returncode) == ("no-such-command: No such file or directory\n", 1)


def test_a_command_whose_parent_has_ended_is_not_started() -> None:
    ended = launch(1, sys.executable, "-c", "print('started')")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "the supervisor is gone\n", 1)
