"""An output folder: clip-retrieval's layout, and what this project keeps beside it.

::

    img_emb/img_emb_N.npy            rows embedded (n, dimension), float16 or float32
    text_emb/text_emb_N.npy          the same of their texts; zeros where a row has none
    metadata/metadata_N.parquet      row k describes row k of both matrices
    errors/errors_N.parquet          the rows that failed, with the same columns and ``error`` filled
    shards/shard_N.json              written last: shard N is whole, with counts and checksums
    plan.parquet                     row group N is what shard N reads
    manifest.json                    source, model, options; once finished, every shard's counts and checksums

N is padded with zeros as clip-retrieval pads it, so that sorting by name sorts by number. A shard none of whose rows
could be embedded has no matrices and no metadata: readers that pair files in order would trip over empty ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import orjson

from clip_queue.shared.workers import ModelInfo
from clip_queue.sources.source import Source, SourceError
from clip_queue.sources.storage import LOCAL, as_os_error, entries, filesystem, join, reason, split

ASIDE, LOCK = ".aside", ".lock"
MANIFEST, PLAN = "manifest.json", "plan.parquet"
VERSION = 1  # of the layout


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the output beside source and model. ``batch_size`` does: how rows share a forward
    pass shows in a vector's last digits."""

    shard_size: int = 10_000
    batch_size: int = 8
    dtype: str = "float16"  # of the stored vectors
    normalize: bool = True


@dataclass(frozen=True)
class Plan:
    """``rows`` is None where only reading tells."""

    id: str
    source: Source
    model: ModelInfo
    options: Options
    shards: int
    rows: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Plan:
        model = {**raw["model"], "image_size": tuple(raw["model"]["image_size"])}
        parts = {
            "source": Source.from_json(raw["source"]),
            "model": ModelInfo(**model),
            "options": Options(**raw["options"]),
        }
        return cls(**{**raw, **parts})


class Output:
    """An output folder, here or where fsspec reaches. Files appear whole: written aside and renamed."""

    def __init__(self, url: str) -> None:
        self.protocol, self.root = split(url)

    @property
    def url(self) -> str:
        return join(self.protocol, self.root)

    @property
    def local(self) -> Path | None:
        """The folder, where it is this machine's."""
        return Path(self.root) if self.protocol == LOCAL else None

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    # Names

    @staticmethod
    def names(shard: int, shards: int) -> dict[str, str]:
        """A shard's files by kind: ``image``, ``text``, ``metadata``, ``errors``, ``shard``."""
        n = str(shard).zfill(len(str(shards)))
        return {
            "image": f"img_emb/img_emb_{n}.npy",
            "text": f"text_emb/text_emb_{n}.npy",
            "metadata": f"metadata/metadata_{n}.parquet",
            "errors": f"errors/errors_{n}.parquet",
            "shard": f"shards/shard_{n}.json",
        }

    # Files

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None: there is none."""
        try:
            if self.protocol == LOCAL:
                return Path(self.path(name)).read_bytes()
            with as_os_error():
                data: bytes = filesystem(self.protocol).cat_file(self.path(name))
            return data
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """A file's bytes, counted; None: there is none."""
        try:
            if self.protocol == LOCAL:
                return Path(self.path(name)).stat().st_size
            with as_os_error():
                size: int = filesystem(self.protocol).info(self.path(name))["size"]
            return size
        except FileNotFoundError:
            return None

    def listed(self, folder: str) -> set[str]:
        """Names of the files in a folder; none where there is no such folder."""
        try:
            if self.protocol == LOCAL:
                return {path.name for path in Path(self.path(folder)).iterdir()}
            with as_os_error():
                return {os.fsdecode(path).rpartition("/")[2] for path, *_ in entries(self.protocol, self.path(folder))}
        except FileNotFoundError:
            return set()

    def write(self, name: str, data: bytes) -> None:
        """Put a whole file in place, replacing what is there."""
        with self.aside(name) as path:
            path.write_bytes(data)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.protocol == LOCAL:
                Path(self.path(name)).unlink()
            else:
                with as_os_error():
                    filesystem(self.protocol).rm_file(self.path(name))

    @contextlib.contextmanager
    def aside(self, name: str, scratch: Path | None = None) -> Iterator[Path]:
        """A local path to write a file to; when the block ends well, it is put in place under ``name``.

        ``scratch``: the folder for it where the output itself is elsewhere.
        """
        with self.scratch(scratch) as folder:
            path = folder / name.rpartition("/")[2]
            yield path
            self.place(path, name)

    @contextlib.contextmanager
    def scratch(self, base: Path | None = None) -> Iterator[Path]:
        """A folder of one's own to write in, gone afterwards: in the output itself, so that renaming is all it takes
        to put a file in place; elsewhere if the output is not on this machine."""
        home = self.local / ASIDE if self.local else base or Path(tempfile.gettempdir())
        folder = home / f"clip-queue-{secrets.token_hex(6)}"
        for turn in count():
            try:
                folder.mkdir(parents=True)
                break
            except FileNotFoundError:  # whoever left last has removed the home between two steps of this
                if turn == 100:
                    raise
        try:
            yield folder
        finally:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            if self.local:
                with contextlib.suppress(OSError):  # another writer's is in it
                    home.rmdir()

    def place(self, path: Path, name: str) -> None:
        """Make a finished local file ``name``, durably and at once."""
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if self.local:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            return
        store = filesystem(self.protocol)
        try:
            with as_os_error():
                if self.root.startswith("/"):  # else it begins with a bucket, which has no folders: none is made
                    store.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
                store.put_file(str(path), self.path(name))  # an object shows when its upload is complete
        except FileNotFoundError as error:
            raise OSError(f"{self.url}: {reason(error)}: make it first, or choose another output") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, where it is this machine's. Raises :class:`BlockingIOError` if another process does."""
        if not self.local:
            yield
            return
        self.local.mkdir(parents=True, exist_ok=True)
        with (self.local / LOCK).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets it go with the process
            yield

    def tidy(self) -> None:
        """Remove what killed writers left."""
        if self.local:
            shutil.rmtree(self.local / ASIDE, ignore_errors=True)
            (self.local / LOCK).unlink(missing_ok=True)

    # The manifest

    def load(self) -> tuple[Plan, dict[str, Any] | None] | None:
        """The plan, and what came of it if it is finished; None: nothing was planned here.

        Raises:
            SourceError: the manifest cannot be understood.
        """
        data = self.read(MANIFEST)
        if data is None:
            return None
        try:
            raw = orjson.loads(data)
            if raw["version"] != VERSION:
                raise ValueError(f"version {raw['version']}")
            return Plan.from_json(raw["plan"]), raw["result"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{self.path(MANIFEST)} cannot be understood ({error}): choose another output") from error

    def save(self, plan: Plan, versions: dict[str, str], result: dict[str, Any] | None = None) -> None:
        value = {"version": VERSION, "plan": plan.to_json(), "versions": versions, "result": result}
        self.write(MANIFEST, orjson.dumps(value, option=orjson.OPT_INDENT_2))
