"""The last release's API and worker as a small archive, so that tests can run them beside today's.

``python -m tests.release_archive 0.2.0 v0.2.0`` writes ``tests/data/release-0.2.0.tar.gz`` from a tag or commit: the
same commit gives the same bytes. Weights are not in it; those of this checkout are linked in.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

LAST, LAST_API, LAST_HTTP, LAST_WORKER = "0.1.0", "api.app:app", "auto", "worker.app"
DATA = Path(__file__).parent / "data"
FOLDERS = ("api", "shared", "worker", "bulk", "clip_queue")
# How its worker finds what does the shards of datasets; as an installed distribution says it.
LAST_HANDLERS = "[clip_queue.work]\nembed_shard = bulk.shard:ShardWork\n"
LEFT_OUT = ("worker/checkpoints",)
CHECKPOINTS = Path(__file__).parent.parent / "worker" / "checkpoints"


def write(version: str, commit: str) -> Path:
    """Make the archive of a commit."""
    there = _git("ls-tree", "--name-only", commit).decode().split()
    folders = [folder for folder in FOLDERS if folder in there]
    tree = _git("archive", "--format=tar", commit, *folders, *(f":(exclude){path}" for path in LEFT_OUT))
    path = DATA / f"release-{version}.tar.gz"
    path.write_bytes(gzip.compress(tree, mtime=0))
    return path


def unpack(version: str, folder: Path) -> Path:
    """Unpack an archive into a new folder of ``folder``; returns what is to be its ``PYTHONPATH``."""
    root = folder / f"release-{version}"
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress((DATA / f"release-{version}.tar.gz").read_bytes()))) as tar:
        tar.extractall(root, filter="data")
    (root / "worker" / "checkpoints").symlink_to(CHECKPOINTS)
    (about := root / f"clip_queue-{version}.dist-info").mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: clip-queue\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(LAST_HANDLERS)
    return root


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, cwd=DATA.parent.parent).stdout


if __name__ == "__main__":
    print(write(*sys.argv[1:]))
