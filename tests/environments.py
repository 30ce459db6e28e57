"""Programs that tests call and that have an environment of their own: they need other versions than the service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness import ROOT


def program(name: str, variable: str, file: str = "python") -> str:
    """``file`` of the environment ``.venv-NAME``, or what ``CLIP_QUEUE_VARIABLE`` names; fails the test without one."""
    found = os.environ.get(f"CLIP_QUEUE_{variable}") or str(ROOT / f".venv-{name}" / "bin" / file)
    if not Path(found).exists():
        hint = f"run `make .venv-{name}/.done`, or set CLIP_QUEUE_{variable}"
        pytest.fail(f"{found} is not there: {hint}", pytrace=False)
    return found


def clean_environment() -> dict[str, str]:
    """This process's, without what would lead such a program to our packages or to a proxy."""
    return {k: v for k, v in os.environ.items() if "PROXY" not in k.upper() and k != "PYTHONPATH"}
