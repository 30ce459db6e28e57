"""What the formats' tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.unit.sources.tar_files import MEMBERS, tar


@pytest.fixture
def t(tmp_path: Path) -> Path:
    path = tmp_path / "t.tar"
    path.write_bytes(tar(MEMBERS))
    return path


@pytest.fixture
def memory() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]
