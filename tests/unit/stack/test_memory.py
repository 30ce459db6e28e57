"""How much memory a Valkey gets."""

from __future__ import annotations

from pathlib import Path

from clip_queue.stack import children
from clip_queue.stack.memory import LEAST, machine_memory, valkey_memory


def test_a_valkey_gets_a_quarter_of_the_machine_unless_told_otherwise(tmp_path: Path) -> None:
    assert valkey_memory(0, 16 * 2**30) == 4 * 2**30
    assert valkey_memory(0, 2**20) == LEAST
    assert valkey_memory(123, 16 * 2**30) == 123
    children.valkey(tmp_path, 1, "x", maxmemory=valkey_memory(0), keep_fds=())
    assert f"\nmaxmemory {valkey_memory(0)}\n" in (tmp_path / "valkey.conf").read_text()


def test_a_container_has_the_memory_of_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "memory.max"
    assert machine_memory(file) > LEAST
    file.write_text("max\n")
    assert machine_memory(file) > LEAST
    file.write_text("1000000\n")
    assert machine_memory(file) == 1_000_000
