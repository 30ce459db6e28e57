"""The pictures that bulk is measured on, made once: the same JPEGs as folder, tars and parquet."""

from __future__ import annotations

import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
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
        aside = ROOT / f"jpeg-{size}.aside"
        aside.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            for number, data in enumerate(pool.map(partial(photo, size=SIZES[size]), range(COUNT), chunksize=50)):
                (aside / f"{number:05}.jpg").write_bytes(data)
        aside.rename(root)
    return root


def tars(size: str) -> str:
    """The same in four tars, as a brace expression."""
    root = ROOT / f"tars-{size}"
    if not root.exists():
        aside = ROOT / f"tars-{size}.aside"
        aside.mkdir(parents=True, exist_ok=True)
        files = sorted(folder(size).iterdir())
        for number in range(TARS):
            with tarfile.open(aside / f"{number}.tar", "w") as tar:
                for path in files[number * COUNT // TARS : (number + 1) * COUNT // TARS]:
                    tar.add(path, path.name)
        aside.rename(root)
    return f"{root}/{{0..{TARS - 1}}}.tar"


def parquet(size: str) -> Path:
    """The same in one parquet, 100 rows a row group."""
    path = ROOT / f"{size}.parquet"
    if not path.exists():
        files = sorted(folder(size).iterdir())
        table = pa.table({"name": [f.name for f in files], "jpg": [f.read_bytes() for f in files]})
        pq.write_table(table, path, row_group_size=100, compression="none")
    return path


def links(count: int, size: str = "256") -> Path:
    """``count`` names for the JPEGs of a size, round and round."""
    root = ROOT / f"links-{size}-{count}"
    if not root.exists():
        aside = ROOT / f"links-{size}-{count}.aside"
        aside.mkdir(parents=True, exist_ok=True)
        files = sorted(folder(size).iterdir())
        for number in range(count):
            name = aside / f"{number:06}.jpg"
            if not name.exists():
                os.link(files[number % COUNT], name)
        aside.rename(root)
    return root
