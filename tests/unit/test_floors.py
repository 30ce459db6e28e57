"""What an API machine needs: importing the API brings in no torch, no open_clip and nothing of the worker."""

from __future__ import annotations

import subprocess
import sys

from tests.harness import ROOT

HEAVY = ["torch", "torchvision", "open_clip", "timm", "PIL", "transformers", "pandas", "scipy"]


def imported(module: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after importing ``module``."""
    code = f"import sys, {module}; print('\\n'.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_api_imports_neither_worker_nor_torch() -> None:
    found = imported("api.app")
    assert {"api", "shared", "fastapi"} <= found
    assert not found & {"worker", "bulk", "cli", *HEAVY}


def test_the_ground_imports_no_other_floor() -> None:
    found = imported("shared.settings, shared.store, shared.ops, shared.broker, shared.workers, shared.reconciler")
    assert not found & {"api", "worker", "bulk", "cli", *HEAVY, "fastapi"}
