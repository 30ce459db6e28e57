"""A store in memory, ``counted://``, that counts what is asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


class Counted(AbstractFileSystem):  # type: ignore[misc]
    """``files``: their contents by path. ``asked``: what was asked, as ``read PATH``, with the bytes that it gave."""

    protocol = "counted"
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[tuple[str, int]]] = []

    @classmethod
    def anew(cls) -> None:
        """Forget all files and all that was asked."""
        cls.files.clear()
        cls.asked.clear()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        self.asked.append((f"info {path}", 0))
        return self._about(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        self.asked.append((f"list {path}", 0))
        found = [self._about(name) for name in self.files if name.rpartition("/")[0] == path]
        if not found:
            raise FileNotFoundError(path)
        return found if detail else [about["name"] for about in found]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        self.asked.append((f"read {path}", 0))
        if path not in self.files:
            raise FileNotFoundError(path)
        return self._taken(path, start, end)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        path = self._strip_protocol(rpath)
        self.asked.append((f"write {path}", 0))
        self.files[path] = Path(lpath).read_bytes()

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path)
        self.asked.append((f"remove {path}", 0))
        if self.files.pop(path, None) is None:
            raise FileNotFoundError(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> CountedFile:
        return CountedFile(self, path, mode, block_size or 2**22, **options)

    def _about(self, path: str) -> dict[str, Any]:
        if path not in self.files:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.files[path]), "type": "file"}

    def _taken(self, path: str, start: int | None, end: int | None) -> bytes:
        data = self.files[path][start:end]
        self.asked[-1] = (self.asked[-1][0], len(data))
        return data


class CountedFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file that asks the store for each range."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.asked.append((f"read {self.path}", 0))
        data: bytes = self.fs._taken(self.path, start, end)
        return data


fsspec.register_implementation("counted", Counted, clobber=True)
