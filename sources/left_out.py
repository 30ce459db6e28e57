"""What of a source's folder is left out: files of other kinds, counted by suffix, and outputs of earlier runs in it."""

from __future__ import annotations

from collections.abc import Iterable

from clip_queue.sources.storage import display, opened

PASSED = "passed"  # in Source.storage: the files that were passed over, once the iterator of shards has ended
MAX_SUFFIXES = 50  # that are told apart
OTHERS = "others"

PLAN_NAME = b"plan.parquet"
PLAN_COLUMNS = ["path", "start", "stop", "size", "note", "rows"]

Passed = dict[str, list[int | str]]
"""Files that were passed over: how many, and the first one's name, by suffix (``.svg``; empty: they have none)."""


def count(passed: Passed, root: bytes, path: bytes) -> None:
    """Count a file that is passed over."""
    name = path.rpartition(b"/")[2]
    stem, dot, end = name.rpartition(b".")
    suffix = display((dot + end).lower()) if stem and len(end) <= 16 else ""
    if suffix not in passed and len(passed) >= MAX_SUFFIXES:
        suffix = OTHERS
    title = display(path[len(root) :].lstrip(b"/") if path.startswith(root) else name)
    number, first = passed.get(suffix, [0, title])
    passed[suffix] = [int(number) + 1, first]


def merge(passed: Passed, more: Passed) -> None:
    """Add the counts of ``more``."""
    for suffix, (number, first) in more.items():
        before = passed.get(suffix, [0, first])
        passed[suffix] = [int(before[0]) + int(number), before[1]]


def is_output(protocol: str, folder: bytes) -> bool:
    """Whether a folder that holds a file ``plan.parquet`` is the output of a run: what is in it is no part of a source.

    A plan file tells it from its first moment on, also while the run that writes it still looks at the source.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(protocol, folder + b"/" + PLAN_NAME) as (file, _):
            return bool(pq.read_schema(file).names == PLAN_COLUMNS)
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return False


def outputs_among(protocol: str, root: bytes, paths: Iterable[bytes], *, deep: bool = False) -> list[bytes]:
    """The folders below ``root`` that are outputs, each with a slash at its end, by the paths of the files there.

    ``deep``: look into each folder on the way to a file, and not only for the plans among ``paths``.
    """
    folders = {path.removesuffix(PLAN_NAME) for path in paths if path.endswith(b"/" + PLAN_NAME)}
    for path in paths if deep else ():
        folder = path.rpartition(b"/")[0]
        while len(folder) > len(root) and folder + b"/" not in folders:
            folders.add(folder + b"/")
            folder = folder.rpartition(b"/")[0]
    inside = sorted(folder for folder in folders if folder.rstrip(b"/") != root.rstrip(b"/"))
    return [folder for folder in inside if is_output(protocol, folder.rstrip(b"/"))]
