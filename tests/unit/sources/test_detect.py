"""Which format a source has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clip_queue.sources.detect import detect
from clip_queue.sources.source import SourceError


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


NAMES = {
    "a.tar": "webdataset",
    "a.tar.gz": "webdataset",
    "a.tgz": "webdataset",
    "A.PARQUET": "parquet",
    "a.txt": "text",
    "a.csv": "csv",
    "a.csv.gz": "csv",
    "a.tsv": "csv",
    "a.jsonl": "jsonl",
    "a.ndjson": "jsonl",
    "a.JPG": "folder",
}


def test_a_table_that_names_the_images_beside_it_is_what_they_are_read_by(tmp_path: Path, memory: Any) -> None:
    for top, table, head, expected in (
        ("a", "metadata.csv", "file_name,text\n0.png,a", "csv"),
        ("b", "train/metadata.jsonl", '{"file_name": "0.png", "text": "b"}', "jsonl"),
        ("c", "metadata.csv", 'text,"file_name"\nc,train/0.png', "csv"),
        ("d", "metadata.csv", "name,file_names\n0.png,a", "folder"),
        ("f", "metadata.jsonl", '{"file_names": ["train/0.png"]}', "jsonl"),
        ("g", "metadata.csv", "image_file_name,text\ntrain/0.png,a", "csv"),
        ("e", "train/other.csv", "file_name,text\n0.png,a", "folder"),
    ):
        put(tmp_path, f"{top}/train/0.png", f"{top}/val/1.png", f"{top}/{table}")
        (tmp_path / top / table).write_text(head)
        memory.pipe(f"/{top}/train/0.png", b"x")
        memory.pipe(f"/{top}/{table}", head.encode())
        assert detect(str(tmp_path / top)) == detect(f"memory://{top}") == expected


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_a_file_tells_by_its_suffix(tmp_path: Path, memory: Any, name: str, expected: str) -> None:
    put(tmp_path, name)
    assert detect(str(tmp_path / name)) == expected
    memory.pipe(f"/d/{name}", b"x")
    assert detect(f"memory://d/{name}") == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tar", "webdataset"),
        ("{000..001}.tar", "webdataset"),
        ("**/*.parquet", "parquet"),
        ("[ab]?.txt", "text"),
        ("x*.csv", "csv"),
        ("{a,b}*.jsonl", "jsonl"),
    ],
)
def test_a_pattern_tells_by_its_suffix(tmp_path: Path, pattern: str, expected: str) -> None:
    assert detect(str(tmp_path / pattern)) == expected
    assert detect(f"memory://nothing/{pattern}") == expected


def test_a_pattern_without_one_tells_by_what_it_names(tmp_path: Path) -> None:
    put(tmp_path, "d/000.tar", "d/001.tar", "e/a.jpg", "f/x.bin")
    assert detect(str(tmp_path / "d" / "0*")) == "webdataset"
    assert detect(str(tmp_path / "{d,d}")) == "webdataset"
    put(tmp_path, "g/b.jpg", "g/b.txt", "h/c.csv", "h/0.jpg", "i/d.csv")
    (tmp_path / "i" / "metadata.csv").write_text("file_name\n0.jpg\n")
    for url, expected in {"e/*.jpg": "folder", "e/*": "folder", "{e,g}": "folder", "{i/d.csv,h/c.csv}": "csv"}.items():
        assert detect(str(tmp_path / url)) == expected
    assert detect(str(tmp_path / "{g/b.jpg,e/a.jpg}")) == "folder"
    with pytest.raises(SourceError, match="are of two formats: embed them one after the other"):
        detect(str(tmp_path / "{h/0.jpg,h/c.csv}"))
    for url in ("f/*", "none/*"):
        with pytest.raises(SourceError):
            detect(str(tmp_path / url))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "folder"),
        (["a.jpg", "a.txt"], "folder"),
        (["a.bin"], "folder"),
        (["a.parquet", "b.jpg"], "parquet"),
        (["0.tar", "b.jpg"], "webdataset"),
        (["a.txt", "b.csv", "c.jsonl"], "jsonl"),
        (["a.txt", "b.csv"], "csv"),
        (["a.txt"], "text"),
        # What lies about is not what the folder is of.
        (["README.txt", "labels.csv", "x/y/a.jpg"], "folder"),
        (["README.txt", "x/y/z/train-0.parquet"], "parquet"),
        ([".cache/a.parquet", "._b.tar", "x/a.jpg"], "folder"),
        (["x/a.jpg", "y/b.parquet"], "folder"),
        # What img2dataset writes.
        (["00000.tar", "00000.parquet", "00000_stats.json"], "webdataset"),
        (["00000/1.jpg", "00000/1.txt", "00000/1.json", "00000.parquet", "00000_stats.json"], "folder"),
        (["00000.parquet", "00000_stats.json"], "parquet"),
    ],
)
def test_a_folder_tells_by_what_it_holds(tmp_path: Path, memory: Any, names: list[str], expected: str) -> None:
    put(tmp_path, *names)
    assert detect(str(tmp_path)) == expected
    memory.mkdir("/m")
    for name in names:
        memory.pipe(f"/m/{name}", b"x")
    assert detect("memory://m") == expected


def test_names_may_mislead(tmp_path: Path) -> None:
    put(tmp_path, "a.tar/x.jpg", "[b]*.parquet/x.jpg", "{c}.jsonl", "d.csv.jpg")
    assert detect(str(tmp_path / "a.tar")) == "folder"
    assert detect(str(tmp_path / "[b]*.parquet")) == "folder"
    assert detect(str(tmp_path / "{c}.jsonl")) == "jsonl"
    assert detect(str(tmp_path / "d.csv.jpg")) == "folder"
    raw = tmp_path / os.fsdecode(b"\xff")
    put(raw, "a.parquet")
    assert detect(str(raw)) == "parquet"


def test_a_source_that_is_missing_or_unknown_is_refused(tmp_path: Path, memory: Any) -> None:
    put(tmp_path, "a.bin")
    os.mkfifo(tmp_path / "pipe")
    for url in (str(tmp_path / "gone"), str(tmp_path / "gone.tar"), "memory://gone", "memory://gone/a.csv"):
        with pytest.raises(SourceError, match=r"does not exist; looked for a folder of images.*\.parquet"):
            detect(url)
    for name in ("a.bin", "pipe"):
        with pytest.raises(SourceError, match="--format"):
            detect(str(tmp_path / name))
    with pytest.raises(SourceError):
        detect(str(tmp_path / "a.bin" / "b.tar"))


def test_only_so_much_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    scandir = os.scandir

    @contextmanager
    def counted(folder: bytes) -> Iterator[Iterator[os.DirEntry[bytes]]]:
        with scandir(folder) as entries:
            yield map(seen, entries)

    def seen(entry: os.DirEntry[bytes]) -> os.DirEntry[bytes]:
        nonlocal looked
        looked += 1
        return entry

    put(tmp_path, *(f"{i}/{j}.bin" for i in range(30) for j in range(30)))
    (tmp_path / "0" / "loop").symlink_to("..")
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", counted)
        assert detect(str(tmp_path), sample_entries=20, max_entries=100) == "folder"
    assert 0 < looked <= 120


def test_a_folder_that_cannot_be_listed_is_refused(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/m/a.jpg", b"x")
    monkeypatch.setattr(memory, "ls", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("https://x/?secret=1")))
    with pytest.raises(SourceError, match="cannot be listed") as caught:
        detect("memory://m")
    assert "secret" not in caught.value.message
