"""What each layer costs to import: the API and the public face bring in no torch, ``shared`` nothing from above it."""

from __future__ import annotations

import subprocess
import sys

from tests.harness import ROOT

HEAVY = {"torch", "torchvision", "open_clip", "timm", "PIL", "transformers", "pandas", "scipy"}
LAYERS = {f"clip_queue.{name}" for name in ("api", "bulk", "cli", "client", "stack", "worker")}


def imported(statement: str) -> set[str]:
    """What a fresh interpreter has loaded after ``statement``: top-level modules, and the parts of ``clip_queue``."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    parts = [name.split(".") for name in done.stdout.split()]
    return {".".join(part[: 2 if part[0] == "clip_queue" else 1]) for part in parts}


def test_the_api_imports_neither_worker_nor_torch() -> None:
    found = imported("import clip_queue.api.app")
    assert {"clip_queue.api", "clip_queue.shared", "fastapi"} <= found
    assert not found & ((LAYERS - {"clip_queue.api"}) | HEAVY)


def test_shared_imports_no_layer_above_it() -> None:
    modules = ("settings", "store", "ops", "broker", "workers", "reconciler")
    found = imported("; ".join(f"import clip_queue.shared.{name}" for name in modules))
    assert not found & (LAYERS | HEAVY | {"fastapi"})


def test_the_public_face_costs_neither_torch_nor_fastapi() -> None:
    assert not imported("import clip_queue") & (LAYERS | HEAVY | {"fastapi", "pydantic", "pyarrow"})
    found = imported("from clip_queue import AsyncClient, Client")
    service = (LAYERS - {"clip_queue.client"}) | {"clip_queue.shared", "celery", "fastapi", "pydantic", "redis"}
    assert not found & (service | HEAVY)
    found = imported("from clip_queue import Settings, __version__, dry_run, embed, search")
    assert not found & {*HEAVY, "fastapi", "clip_queue.api", "clip_queue.worker"}
