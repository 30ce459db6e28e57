"""The datasets of the bulk benchmarks: the same JPEGs as a folder, as tars and as parquet. Each is made once."""

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
    """A folder of 2,000 JPEGs of a size (a key of :data:`SIZES`)."""
    root = ROOT / f"jpeg-{size}"
    if not root.exists():
        make = partial(photo, size=SIZES[size])
        with _aside(root) as aside, ProcessPoolExecutor() as pool:
            for number, data in enumerate(pool.map(make, range(COUNT), chunksize=50)):
                (aside / f"{number:05}.jpg").write_bytes(data)
    return root


def tars(size: str, times: int = 1) -> str:
    """The same JPEGs in four tars, as a brace expression. ``times``: the number of names of each tar."""
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
    """The same JPEGs in a folder of one parquet file, 100 rows a row group. ``times``: the number of its names."""
    root = ROOT / f"parquet-{size}"
    if not root.exists():
        with _aside(root) as aside:
            files = sorted(folder(size).iterdir())
            table = pa.table({"name": [f.name for f in files], "jpg": [f.read_bytes() for f in files]})
            pq.write_table(table, aside / "0.parquet", row_group_size=100, compression="none")
    return str(_again(root, times))


def links(count: int, size: str = "256") -> str:
    """A folder of ``count`` hard links to the JPEGs of a size, which repeat."""
    root = ROOT / f"links-{size}-{count}"
    if not root.exists():
        with _aside(root) as aside:
            files = sorted(folder(size).iterdir())
            for number in range(count):
                os.link(files[number % COUNT], aside / f"{number:06}.jpg")
    return str(root)


def _again(root: Path, times: int) -> Path:
    """A folder with ``times`` hard links to each file of a folder: more rows without more bytes."""
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
    """A folder to write to, which is renamed to ``root`` at the end of the block."""
    aside = root.with_name(f"{root.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.rename(root)
