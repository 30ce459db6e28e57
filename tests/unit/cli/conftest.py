"""Every test of the command runs without settings of the environment, in a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("CLIP_QUEUE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
