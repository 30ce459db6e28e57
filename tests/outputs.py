"""Output folders of bulk, read by numpy and pyarrow alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from clip_queue.shared.vectors import Matrix

DATA = ("img_emb", "text_emb", "metadata", "errors")


def matrix(output: Path, kind: str) -> Matrix:
    """All rows of ``img_emb`` or ``text_emb``, in order."""
    return np.concatenate([np.load(path).astype(np.float32) for path in sorted((output / kind).glob("*.npy"))])


def table(output: Path, kind: str = "metadata") -> list[dict[str, Any]]:
    """All rows of ``metadata`` or ``errors``, in order."""
    return [row for path in sorted((output / kind).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def checksums(output: Path) -> dict[str, str]:
    """The checksums of the files that a run has made, without those that have times in them."""
    files = sorted(path for kind in DATA for path in (output / kind).rglob("*"))
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def strays(output: Path) -> list[str]:
    """Files in an output that a finished run should have removed."""
    known = {"manifest.json", "plan.parquet", "plan", "shards", ".owner", *DATA}
    return sorted(path.name for path in output.iterdir() if path.name not in known)
