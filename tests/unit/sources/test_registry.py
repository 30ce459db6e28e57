"""The registry: one entry for each format, its module, its suffixes and its words; sources planned and read by it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.detect import detect
from clip_queue.sources.source import Source, SourceError
from tests.unit.sources.folders import put

SETTINGS = Settings()


def test_the_names_are_those_that_manifests_hold() -> None:
    assert registry.names() == ("folder", "webdataset", "zip", "parquet", "arrow", "text", "csv", "jsonl", "json")
    assert all(name == spec.name for name, spec in registry.FORMATS.items())


def test_the_phrases_for_help_and_messages_name_every_format() -> None:
    assert registry.listed() == "folder, webdataset, zip, parquet, arrow, text, csv, jsonl or json"
    assert registry.described() == "folder of images, tars, .zip, parquet, .arrow, .txt, .csv, .jsonl or .json"
    assert registry.sought() == "a folder of images, or .tar, .zip, .parquet, .arrow, .txt, .csv, .jsonl or .json files"


@pytest.mark.parametrize("spec", registry.FORMATS.values(), ids=registry.FORMATS)
def test_every_format_has_a_module_that_plans_reads_and_finds(spec: registry.FormatSpec) -> None:
    module = import_module(spec.module)
    assert all(callable(getattr(module, name)) for name in ("plan_shards", "read", "find_image"))
    assert list(signature(module.find_image).parameters) == ["source", "image_path", "settings", "place"]


def test_no_two_formats_share_a_suffix_or_a_rank() -> None:
    specs = registry.FORMATS.values()
    suffixes = [suffix for spec in specs for suffix in spec.suffixes + spec.compressed]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)
    assert len({spec.rank for spec in specs}) == len(registry.FORMATS)


@pytest.mark.parametrize(
    ("name", "suffix"), [(spec.name, suffix) for spec in registry.FORMATS.values() for suffix in spec.suffixes]
)
def test_every_suffix_is_recognised(tmp_path: Path, name: str, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    assert detect(str(tmp_path / f"a{suffix}")) == detect(str(tmp_path)) == name


@pytest.mark.parametrize(
    ("name", "suffix"), [(spec.name, suffix) for spec in registry.FORMATS.values() for suffix in spec.compressed]
)
def test_every_compressed_suffix_is_recognised(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"x")
    assert detect(str(path)) == name


def test_a_format_that_is_not_known_is_refused() -> None:
    source = Source("x", "tarball")
    message = (
        "format 'tarball' is not known: use one of folder, webdataset, zip, parquet, arrow, text, csv, jsonl, json"
    )
    with pytest.raises(SourceError, match=message):
        registry.plan_shards(source, 10, SETTINGS)
    with pytest.raises(SourceError, match=message):
        registry.read(source, [], SETTINGS)
    with pytest.raises(SourceError, match=message):
        registry.find_image(source, "a.jpg", SETTINGS)


def test_the_registry_needs_no_package_of_an_extra() -> None:
    code = "import sys; import clip_queue.sources.registry; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"fsspec", "pyarrow", "braceexpand", "numpy"} & set(done.stdout.split())


def test_sources_are_planned_and_read_by_their_format(tmp_path: Path) -> None:
    put(tmp_path / "f", "b.jpg", "a/c.jpg")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo("k.jpg")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"t"))
    for name, expected in (("f", {"b.jpg": b"b.jpg", "a/c.jpg": b"a/c.jpg"}), ("t.tar", {"t.tar/k.jpg": b"t"})):
        url = str(tmp_path / name)
        source, shards = registry.plan_shards(Source(url, detect(url)), 10, SETTINGS)
        # A worker gets the source as JSON, and a later release may have written more of it.
        source = Source.from_json({**source.to_json(), "of_a_later_release": 1})
        rows = [row for shard in shards for row in registry.read(source, shard.pieces, SETTINGS)]
        assert [row.columns["image_path"] for row in rows] == list(expected)
        for path, data in expected.items():
            assert registry.find_image(source, path, SETTINGS) == data


def test_the_source_of_a_manifest_has_these_fields() -> None:
    assert Source("x", "text").to_json() == {
        "url": "x",
        "format": "text",
        "image_column": None,
        "text_column": None,
        "images": None,
        "texts": None,
        "columns": {},
        "storage": {},
    }


def test_an_error_of_a_store_s_client_names_the_image(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/m/a.jpg", b"x")
    source = Source("memory://m", "folder")
    assert registry.find_image(source, "a.jpg", SETTINGS) == b"x"
    with pytest.raises(FileNotFoundError):
        registry.find_image(source, "b.jpg", SETTINGS)
    monkeypatch.setattr(memory, "open", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("https://x/?secret=1")))
    with pytest.raises(OSError, match=r"a\.jpg cannot be read: RuntimeError$"):
        registry.find_image(source, "a.jpg", SETTINGS)


def test_a_file_that_is_no_image_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(OSError, match=r"^a\.jpg cannot be read: not a regular file$"):
        registry.find_image(Source(str(tmp_path), "folder"), "a.jpg", SETTINGS)
