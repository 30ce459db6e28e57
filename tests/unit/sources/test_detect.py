"""Which format a source is, and that every format is there."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from clip_queue.sources import reader
from clip_queue.sources.source import Format, Source, SourceError


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


NAMES = {
    "a.tar": Format.WEBDATASET,
    "a.tar.gz": Format.WEBDATASET,
    "a.tgz": Format.WEBDATASET,
    "A.PARQUET": Format.PARQUET,
    "a.txt": Format.TEXT,
    "a.csv": Format.CSV,
    "a.csv.gz": Format.CSV,
    "a.tsv": Format.CSV,
    "a.jsonl": Format.JSONL,
    "a.ndjson": Format.JSONL,
    "a.JPG": Format.FOLDER,
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_a_file_tells_by_its_suffix(tmp_path: Path, memory: Any, name: str, expected: Format) -> None:
    put(tmp_path, name)
    assert reader.guess(str(tmp_path / name)) == expected
    memory.pipe(f"/d/{name}", b"x")
    assert reader.guess(f"memory://d/{name}") == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tar", Format.WEBDATASET),
        ("{000..001}.tar", Format.WEBDATASET),
        ("**/*.parquet", Format.PARQUET),
        ("[ab]?.txt", Format.TEXT),
        ("x*.csv", Format.CSV),
        ("{a,b}*.jsonl", Format.JSONL),
    ],
)
def test_a_pattern_tells_by_its_suffix(tmp_path: Path, pattern: str, expected: Format) -> None:
    assert reader.guess(str(tmp_path / pattern)) == expected
    assert reader.guess(f"memory://nothing/{pattern}") == expected


def test_a_pattern_without_one_tells_by_what_it_names(tmp_path: Path) -> None:
    put(tmp_path, "d/000.tar", "d/001.tar", "e/a.jpg", "f/x.bin")
    assert reader.guess(str(tmp_path / "d" / "0*")) == Format.WEBDATASET
    assert reader.guess(str(tmp_path / "{d,d}")) == Format.WEBDATASET
    with pytest.raises(SourceError, match="pictures are read by their folder"):
        reader.guess(str(tmp_path / "e" / "*.jpg"))
    for url in ("e/*", "f/*", "none/*"):
        with pytest.raises(SourceError):
            reader.guess(str(tmp_path / url))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], Format.FOLDER),
        (["a.jpg", "a.txt"], Format.FOLDER),
        (["a.bin"], Format.FOLDER),
        (["a.parquet", "b.jpg"], Format.PARQUET),
        (["0.tar", "b.jpg"], Format.WEBDATASET),
        (["a.txt", "b.csv", "c.jsonl"], Format.JSONL),
        (["a.txt", "b.csv"], Format.CSV),
        (["a.txt"], Format.TEXT),
        # What lies about is not what the folder is of.
        (["README.txt", "labels.csv", "x/y/a.jpg"], Format.FOLDER),
        (["README.txt", "x/y/z/train-0.parquet"], Format.PARQUET),
        ([".cache/a.parquet", "._b.tar", "x/a.jpg"], Format.FOLDER),
        (["x/a.jpg", "y/b.parquet"], Format.FOLDER),
        # What img2dataset writes.
        (["00000.tar", "00000.parquet", "00000_stats.json"], Format.WEBDATASET),
        (["00000/1.jpg", "00000/1.txt", "00000/1.json", "00000.parquet", "00000_stats.json"], Format.FOLDER),
        (["00000.parquet", "00000_stats.json"], Format.PARQUET),
    ],
)
def test_a_folder_tells_by_what_it_holds(tmp_path: Path, memory: Any, names: list[str], expected: Format) -> None:
    put(tmp_path, *names)
    assert reader.guess(str(tmp_path)) == expected
    memory.mkdir("/m")
    for name in names:
        memory.pipe(f"/m/{name}", b"x")
    assert reader.guess("memory://m") == expected


def test_names_may_mislead(tmp_path: Path) -> None:
    put(tmp_path, "a.tar/x.jpg", "[b]*.parquet/x.jpg", "{c}.jsonl", "d.csv.jpg")
    assert reader.guess(str(tmp_path / "a.tar")) == Format.FOLDER
    assert reader.guess(str(tmp_path / "[b]*.parquet")) == Format.FOLDER
    assert reader.guess(str(tmp_path / "{c}.jsonl")) == Format.JSONL
    assert reader.guess(str(tmp_path / "d.csv.jpg")) == Format.FOLDER
    raw = tmp_path / os.fsdecode(b"\xff")
    put(raw, "a.parquet")
    assert reader.guess(str(raw)) == Format.PARQUET


def test_what_is_missing_or_says_nothing_is_said(tmp_path: Path, memory: Any) -> None:
    put(tmp_path, "a.bin")
    os.mkfifo(tmp_path / "pipe")
    for url in (str(tmp_path / "gone"), str(tmp_path / "gone.tar"), "memory://gone", "memory://gone/a.csv"):
        with pytest.raises(SourceError, match=r"does not exist; looked for a folder of pictures.*\.parquet"):
            reader.guess(url)
    for name in ("a.bin", "pipe"):
        with pytest.raises(SourceError, match="--format"):
            reader.guess(str(tmp_path / name))
    with pytest.raises(SourceError):
        reader.guess(str(tmp_path / "a.bin" / "b.tar"))


def test_only_so_much_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    entries = reader._entries

    def counted(protocol: str, folder: bytes) -> Any:
        nonlocal looked
        for entry in entries(protocol, folder):
            looked += 1
            yield entry

    monkeypatch.setattr(reader, "_entries", counted)
    monkeypatch.setattr(reader, "LOOK", 20)
    monkeypatch.setattr(reader, "LOOK_ALL", 100)
    put(tmp_path, *(f"{i}/{j}.bin" for i in range(30) for j in range(30)))
    (tmp_path / "0" / "loop").symlink_to("..")
    assert reader.guess(str(tmp_path)) == Format.FOLDER
    assert looked <= 120


def test_a_folder_that_cannot_be_listed_is_said(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/m/a.jpg", b"x")
    monkeypatch.setattr(memory, "ls", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("https://x/?secret=1")))
    with pytest.raises(SourceError, match="cannot be listed") as caught:
        reader.guess("memory://m")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("kind", Format)
def test_every_format_can_be_planned_read_and_found_in(kind: Format) -> None:
    module = reader._module(kind)
    assert all(callable(getattr(module, name)) for name in ("plan", "read", "find"))


def test_sources_are_read_by_their_format(tmp_path: Path) -> None:
    put(tmp_path / "f", "b.jpg", "a/c.jpg")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo("k.jpg")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"t"))
    for name, expected in (("f", {"b.jpg": b"x", "a/c.jpg": b"x"}), ("t.tar", {"t.tar/k.jpg": b"t"})):
        url = str(tmp_path / name)
        source, shards = reader.plan(Source(url, reader.guess(url)), 10)
        # Through what is kept of it between planning and reading.
        source = Source.from_json(source.to_json())
        rows = [row for shard in shards for row in reader.read(source, shard.pieces)]
        assert [row.columns["image_path"] for row in rows] == list(expected)
        for path, data in expected.items():
            assert reader.find(source, path) == data


def test_a_store_s_own_errors_come_as_oserror(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/m/a.jpg", b"x")
    source = Source("memory://m", Format.FOLDER)
    assert reader.find(source, "a.jpg") == b"x"
    monkeypatch.setattr(memory, "open", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("https://x/?secret=1")))
    with pytest.raises(OSError, match=r"a\.jpg cannot be read") as caught:
        reader.find(source, "a.jpg")
    assert "secret" not in str(caught.value)
