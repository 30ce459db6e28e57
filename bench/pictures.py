"""The pictures that bulk is measured on, made once: the same JPEGs as folder, tars and parquet."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.common import photo

ROOT = Path(__file__).parent.parent / ".cache" / "bench"
COUNT = 2000
TARS = 4
SIZES = {"256": (256, 256), "640": (640, 480)}


def folder(size: str) -> Path:
    """2,000 JPEGs of a size, named by number."""
    root = ROOT / f"jpeg-{size}"
    if not root.exists():
        make = partial(photo, size=SIZES[size])
        with _aside(root) as aside, ProcessPoolExecutor() as pool:
            for number, data in enumerate(pool.map(make, range(COUNT), chunksize=50)):
                (aside / f"{number:05}.jpg").write_bytes(data)
    return root


def tars(size: str, times: int = 1) -> str:
    """The same in four tars, as a brace expression; ``times``: each under so many names."""
    root = ROOT / f"tars-{size}"
    if not root.exists():
        with _aside(root) as aside:
            files = sorted(folder(size).iterdir())
            for number in range(TARS):
                with tarfile.open(aside / f"{number}.tar", "w") as tar:
                    for path in files[number * COUNT // TARS : (number + 1) * COUNT // TARS]:
                        tar.add(path, path.name)
    return f"{_again(root, times)}/{{0..{TARS * times - 1}}}.tar"


def parquet(size: str, times: int = 1) -> str:
    """The same in a folder of one parquet, 100 rows a row group; ``times``: under so many names."""
    root = ROOT / f"parquet-{size}"
    if not root.exists():
        with _aside(root) as aside:
            files = sorted(folder(size).iterdir())
            table = pa.table({"name": [f.name for f in files], "jpg": [f.read_bytes() for f in files]})
            pq.write_table(table, aside / "0.parquet", row_group_size=100, compression="none")
    return str(_again(root, times))


def links(count: int, size: str = "256") -> str:
    """A folder of ``count`` names for the JPEGs of a size, round and round."""
    root = ROOT / f"links-{size}-{count}"
    if not root.exists():
        with _aside(root) as aside:
            files = sorted(folder(size).iterdir())
            for number in range(count):
                os.link(files[number % COUNT], aside / f"{number:06}.jpg")
    return str(root)


def _again(root: Path, times: int) -> Path:
    """A folder's files, each under ``times`` names: as many rows, no more bytes."""
    more = ROOT / f"{root.name}-{times}"
    if not more.exists():
        with _aside(more) as aside:
            files = sorted(root.iterdir())
            for number in range(times * len(files)):
                file = files[number % len(files)]
                os.link(file, aside / f"{number}{file.suffix}")
    return more


@contextmanager
def _aside(root: Path) -> Iterator[Path]:
    """A folder that becomes ``root`` once it is full."""
    aside = root.with_name(f"{root.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.rename(root)
