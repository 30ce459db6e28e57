"""Small datasets in every format that bulk reads, with the same images and captions, some of them broken."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tests.images import bomb, noise_image

CAPTIONS = ["red heart", "dog face", "it said “hi”, twice", "naïve café", "rocket", "a cat\u2028on a mat"]


@dataclass(frozen=True)
class Dataset:
    """A dataset and its rows.

    ``good`` are the rows that can be embedded, in order: (name, image or None, caption or None). ``bad`` are the names
    of the other rows, "" if they have none.
    """

    url: str
    good: list[tuple[str, bytes | None, str | None]]
    bad: list[str] = field(default_factory=list)


def rows(count: int) -> list[tuple[str, bytes, str]]:
    """Images with names and captions, sorted by name."""
    return [
        (f"{i:03} é.jpg", noise_image(i, format="JPEG"), f"{CAPTIONS[i % len(CAPTIONS)]} {i}") for i in range(count)
    ]


def broken(good: bytes) -> dict[str, bytes]:
    """Images that cannot be decoded, by name. ``good`` is an image that can."""
    return {
        "x0 empty.jpg": b"",
        "x1 cut.jpg": good[: len(good) // 2],
        "x2 words.jpg": b"not an image at all",
        "x3 bomb.png": bomb(),
    }


def folder(root: Path, count: int, *, captions: bool = True) -> Dataset:
    """A folder of images and, with ``captions``, text files."""
    root.mkdir(parents=True)
    good: list[tuple[str, bytes | None, str | None]] = []
    for name, data, caption in rows(count):
        (root / name).write_bytes(data)
        if captions:
            (root / name).with_suffix(".txt").write_text(caption)
        good.append((name, data, caption if captions else None))
    bad = broken(rows(1)[0][1])
    for name, data in bad.items():
        (root / name).write_bytes(data)
    return Dataset(str(root), good, list(bad))


def tars(root: Path, count: int, *, in_each: int = 5) -> Dataset:
    """Tars of the webdataset format, ``in_each`` rows each."""
    root.mkdir(parents=True)
    everything = [*rows(count), *((name, data, "") for name, data in broken(rows(1)[0][1]).items())]
    good: list[tuple[str, bytes | None, str | None]] = []
    for number, start in enumerate(range(0, len(everything), in_each)):
        path = root / f"{number:05}.tar"
        with tarfile.open(path, "w") as tar:
            for name, data, caption in everything[start : start + in_each]:
                stem, _, suffix = name.rpartition(".")
                about = orjson.dumps({"width": 96, "url": f"https://example.org/{stem}"})
                for ending, body in ((suffix, data), ("txt", caption.encode()), ("json", about)):
                    member = tarfile.TarInfo(f"{stem}.{ending}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
                if caption:
                    good.append((f"{path.name}/{name}", data, caption))
    return Dataset(str(root), good, list(broken(b"")))


def parquet(path: Path, count: int) -> Dataset:
    """A parquet file with encoded images and captions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    everything = [*rows(count), *((name, data, "") for name, data in broken(rows(1)[0][1]).items())]
    names, data, captions = (list(column) for column in zip(*everything, strict=True))
    columns = {"jpg": data, "caption": captions, "width": [96] * len(data)}
    pq.write_table(pa.table(columns), path, row_group_size=4)
    good: list[tuple[str, bytes | None, str | None]] = [
        (f"{path.name}#{i}", d, c) for i, (_, d, c) in enumerate(rows(count))
    ]
    return Dataset(str(path), good, names[count:])


def paths_in_parquet(root: Path, count: int) -> Dataset:
    """A parquet file with paths of images."""
    images = folder(root / "images", count, captions=False)
    names = [f"images/{name}" for name in [*(n for n, _, _ in images.good), *images.bad, "missing.jpg"]]
    pq.write_table(pa.table({"image_path": names, "stars": list(range(len(names)))}), root / "table.parquet")
    good: list[tuple[str, bytes | None, str | None]] = [(f"images/{n}", d, None) for n, d, _ in images.good]
    return Dataset(str(root / "table.parquet"), good, names[count:])


def lines(path: Path, count: int) -> Dataset:
    """A text file with a text a line."""
    texts = [caption for _, _, caption in rows(count)]
    path.write_bytes(b"\n".join([*(t.encode() for t in texts), b"\xff\xfe bad", b"word " * 400, b""]))
    return Dataset(str(path), [("", None, t) for t in texts], ["", ""])


def spreadsheet(path: Path, count: int) -> Dataset:
    """A CSV file with a column of texts."""
    texts = [f"{caption}\nsecond line" if i % 3 == 0 else caption for i, (_, _, caption) in enumerate(rows(count))]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "caption"])
        writer.writerows(enumerate(texts))
        file.write("7,too,many,fields\n")
    return Dataset(str(path), [("", None, t) for t in texts], [""])


def objects(path: Path, count: int) -> Dataset:
    """A JSON Lines file with paths of images, and texts."""
    images = folder(path.parent / "of jsonl", count, captions=False)
    made = [
        orjson.dumps({"image": f"of jsonl/{name}", "text": CAPTIONS[i % len(CAPTIONS)], "n": i})
        for i, (name, _, _) in enumerate(images.good)
    ]
    path.write_bytes(b"\n".join([*made, b"{not json", orjson.dumps({"image": "of jsonl/none.jpg"})]))
    good: list[tuple[str, bytes | None, str | None]] = [
        (f"of jsonl/{name}", data, CAPTIONS[i % len(CAPTIONS)]) for i, (name, data, _) in enumerate(images.good)
    ]
    return Dataset(str(path), good, ["", "of jsonl/none.jpg"])


# The functions that make a dataset in an empty folder, by format.
MAKE: dict[str, Callable[[Path, int], Dataset]] = {
    "folder": lambda root, count: folder(root / "in", count, captions=False),
    "folder with captions": lambda root, count: folder(root / "in", count),
    "tars": lambda root, count: tars(root / "in", count),
    "parquet with images": lambda root, count: parquet(root / "in.parquet", count),
    "parquet with paths": paths_in_parquet,
    "lines of text": lambda root, count: lines(root / "in.txt", count),
    "csv": lambda root, count: spreadsheet(root / "in.csv", count),
    "jsonl": lambda root, count: objects(root / "in.jsonl", count),
}
