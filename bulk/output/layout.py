"""The output folder: clip-retrieval's layout or tables, and the files that this project adds to them.

::

    img_emb/img_emb_N.npy            rows embedded (n, dimension), float16 or float32
    text_emb/text_emb_N.npy          the same of their texts; zeros where a row has none
    metadata/metadata_N.parquet      row k describes row k of both matrices
    table/table_N.parquet            instead of these three: vectors and metadata, row by row (``--layout table``)
    errors/errors_N.parquet          the rows that failed, with the same columns and ``error`` filled
    shards/shard_N.json              written last: shard N is complete, with counts and checksums
    plan.parquet                     row group N is what shard N reads, of the first 128
    plan/plan_P.parquet              the same of the 128 shards from number 128 * P on
    plan/complete_P.json             the markers of those 128 shards once all are complete (also P = 0)
    .leases/                         which commands are at work, where several do parts of a run
    manifest.json                    source, model, options; once finished, every shard's counts and checksums

N is padded with zeros as clip-retrieval pads it, so that sorting by name sorts by number. A shard none of whose rows
could be embedded has no matrices and no metadata: readers that pair files in order would trip over empty ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from clip_queue.sources.looking import go_on
from clip_queue.sources.storage import (
    LOCAL,
    as_os_error,
    check_name,
    entries,
    filesystem,
    forget_listings,
    join,
    reason,
    split,
)

STAGING, LOCK, LEASES = ".aside", ".lock", ".leases"
MANIFEST, PLAN, PLAN_PARTS = "manifest.json", "plan.parquet", "plan"

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # what a file system without locks answers


class Output:
    """An output folder, on this machine or where fsspec reaches.

    A file appears complete or not at all: it is written in a staging folder and then published by renaming it.
    """

    def __init__(self, url: str) -> None:
        """Raises :class:`BadInput` if the name is empty or no text."""
        check_name("output", url)
        self.protocol, self.root = split(url)

    @property
    def url(self) -> str:
        return join(self.protocol, self.root)

    @property
    def local(self) -> Path | None:
        """The folder as a path; None where it is not on this machine."""
        return Path(self.root) if self.protocol == LOCAL else None

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    # Names

    @staticmethod
    def names(shard: int, shards: int) -> dict[str, str]:
        """A shard's files by kind: ``image``, ``text``, ``metadata``, ``table``, ``errors``, ``shard``."""
        n = str(shard).zfill(len(str(shards)))
        return {
            "image": f"img_emb/img_emb_{n}.npy",
            "text": f"text_emb/text_emb_{n}.npy",
            "metadata": f"metadata/metadata_{n}.parquet",
            "table": f"table/table_{n}.parquet",
            "errors": f"errors/errors_{n}.parquet",
            "shard": f"shards/shard_{n}.json",
        }

    # Files

    def read(self, name: str) -> bytes | None:
        """A file's content; None: there is no such file."""
        try:
            if self.protocol == LOCAL:
                return Path(self.path(name)).read_bytes()
            with as_os_error():
                data: bytes = filesystem(self.protocol).cat_file(self.path(name))
            return data
        except (FileNotFoundError, NotADirectoryError):  # the latter: the output is a file
            return None

    def size(self, name: str) -> int | None:
        """A file's size, bytes; None: there is no such file."""
        try:
            if self.protocol == LOCAL:
                return Path(self.path(name)).stat().st_size
            with as_os_error():
                size: int = filesystem(self.protocol).info(self.path(name))["size"]
            return size
        except FileNotFoundError:
            return None

    def listed(self, folder: str) -> set[str]:
        """The names of the files in a folder; the empty set where the folder does not exist."""
        try:
            if self.protocol == LOCAL:
                return {path.name for path in Path(self.path(folder)).iterdir()}
            return {os.fsdecode(path).rpartition("/")[2] for path, *_ in entries(self.protocol, self.path(folder))}
        except FileNotFoundError:
            return set()

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """The files in a folder, each with its size, bytes; none where the folder does not exist."""
        try:
            if self.protocol != LOCAL:
                for path, _, size in entries(self.protocol, self.path(folder)):
                    yield os.fsdecode(path).rpartition("/")[2], size
                return
            with os.scandir(self.path(folder)) as found:
                for entry in found:
                    go_on()
                    with contextlib.suppress(FileNotFoundError):  # it is being replaced
                        yield entry.name, entry.stat().st_size
        except FileNotFoundError:
            return

    def write(self, name: str, data: bytes) -> None:
        """Write a file, replacing an older one of that name."""
        with self.staged(name) as path:
            path.write_bytes(data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file if there is none of that name; whether this call made it. Of several at once one does.

        Raises:
            OSError: it cannot be written; ``ENOTSUP``: the store's client has no such writing.
        """
        if self.local:
            for turn in count():
                try:
                    (self.local / name).parent.mkdir(parents=True, exist_ok=True)
                    with (self.local / name).open("xb") as file:
                        file.write(data)
                    return True
                except FileExistsError:
                    return False
                except FileNotFoundError:  # another command has removed the empty folder
                    if turn == 100:
                        raise
        try:
            with as_os_error():
                filesystem(self.protocol).pipe_file(self.path(name), data, mode="create")
        except OSError as error:  # each store says in its own way that the file is there
            if (found := self.read(name)) is not None:
                return found == data  # a client that got no answer has asked twice
            if isinstance(error.__cause__, NotImplementedError | TypeError | ValueError):
                raise OSError(errno.ENOTSUP, "no file is written only where there is none") from error
            raise
        return True

    def remove(self, name: str, *, last: bool = False) -> None:
        """Remove a file, if it is there; ``last``: its folder as well, if it is empty then."""
        with contextlib.suppress(FileNotFoundError):
            if self.local:
                (self.local / name).unlink()
                if last:
                    with contextlib.suppress(OSError):
                        (self.local / name).parent.rmdir()
                return
            with as_os_error():
                filesystem(self.protocol).rm_file(self.path(name))

    @contextlib.contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A local path to write a file to; when the block ends well, it is published under ``name``."""
        with self.staging() as folder:
            path = folder / name.rpartition("/")[2]
            yield path
            self.publish(path, name)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder of the caller's own to write in; it is removed afterwards.

        It is in the output itself, so that publishing a file is renaming it; if the output is not on this machine, it
        is in the folder for temporary files.
        """
        home = self.local / STAGING if self.local else Path(tempfile.gettempdir())
        folder = home / f"clip-queue-{secrets.token_hex(6)}"
        for turn in count():
            try:
                folder.mkdir(parents=True)
                break
            except FileNotFoundError:  # another writer has removed the empty parent between two steps of mkdir
                if turn == 100:
                    raise
        try:
            yield folder
        finally:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            if self.local:
                with contextlib.suppress(OSError):  # another writer's folder is in it
                    home.rmdir()

    def publish(self, path: Path, name: str) -> None:
        """Make a finished local file the output's file ``name``: durably, and in one step."""
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
                if self.root.startswith("/"):  # else it begins with a bucket, and buckets have no folders to make
                    store.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
                store.put_file(str(path), self.path(name))  # an object shows when its upload is complete
        except FileNotFoundError as error:
            raise OSError(f"{self.url}: {reason(error)}: make it first, or choose another output") from error

    @contextlib.contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the folder for this process, where it is on this machine; ``shared``: with others that hold it so, and
        where the file system has no locks, without one.

        Raises:
            BlockingIOError: another process holds it.
        """
        if not self.local:
            yield
            return
        self.local.mkdir(parents=True, exist_ok=True)
        with (self.local / LOCK).open("a+b") as file:  # to read as well: NFS shares no lock without
            try:  # the kernel lets it go with the process
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                if not shared or error.errno not in _NO_LOCKS:
                    raise
            yield

    def move(self, name: str, to: Output) -> None:
        """Make a file the file of the same name of another output in the same file system, replacing an older one."""
        if self.local and to.local:
            target = to.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.local / name).replace(target)
            return
        store = filesystem(self.protocol)
        with as_os_error():
            store.cp_file(self.path(name), to.path(name))
            store.rm_file(self.path(name))

    def erase(self) -> None:
        """Remove the output with all that it holds."""
        if self.local:
            shutil.rmtree(self.local, ignore_errors=True)
            return
        forget_listings(self.protocol)  # they would hide what workers have written
        with contextlib.suppress(FileNotFoundError), as_os_error():
            filesystem(self.protocol).rm(self.root, recursive=True)

    def clean(self) -> None:
        """Remove the files that killed writers left behind, and the leases of killed commands."""
        for name in self.listed(LEASES):
            self.remove(f"{LEASES}/{name}", last=True)
        if self.local:
            shutil.rmtree(self.local / STAGING, ignore_errors=True)
            (self.local / LOCK).unlink(missing_ok=True)
