"""The rows of a tar as webdataset defines them: members in sequence that share a name up to its first dot."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from clip_queue.shared.errors import BadInput
from clip_queue.sources.formats.image_files import SUFFIXES
from clip_queue.sources.formats.tars import Tar
from clip_queue.sources.storage import display

TEXT_BYTES = 2**20  # the longest .txt or .json

IMAGE, TEXT, JSON = "image", "text", "json"  # kinds of members that are read
KINDS = {**dict.fromkeys(SUFFIXES, IMAGE), b"txt": TEXT, b"json": JSON}  # by suffix, in small letters


@dataclass(slots=True)
class Sample:
    """A row as it is in the tar, not yet parsed.

    Attributes:
        key: the name that its members share.
        suffixes: the rest of their names.
        image: the name of its image.
        data: the members' bytes, by kind.
        error: why one of them could not be read.
    """

    key: bytes
    suffixes: set[bytes] = field(default_factory=set)
    image: bytes | None = None
    data: dict[str, bytes] = field(default_factory=dict)
    error: BadInput | None = None

    def values(self) -> dict[str, Any]:
        """The values of its JSON. Raises :class:`BadInput` if that is not a JSON object."""
        data = self.data.get(JSON, b"{}")
        try:
            try:
                value = orjson.loads(data)
            except ValueError:
                # Python writes NaN, and so does img2dataset: it becomes null. orjson refuses halves of surrogate pairs.
                value = orjson.loads(orjson.dumps(json.loads(data.decode("utf-8-sig"))))
        except (ValueError, TypeError, RecursionError) as error:
            raise BadInput(f"{display(self.key)}.json is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise BadInput(f"{display(self.key)}.json is no object")
        return value

    def caption(self, values: dict[str, Any]) -> str | None:
        """Its caption: NAME.txt, else ``caption`` in its JSON; None if it has none or an empty one.

        Raises:
            BadInput: it is not UTF-8.
        """
        if TEXT in self.data:
            try:
                return self.data[TEXT].decode("utf-8-sig").strip() or None
            except UnicodeDecodeError as error:
                raise BadInput(f"{display(self.key)}.txt is not UTF-8") from error
        caption = values.get("caption")
        return caption.strip() or None if isinstance(caption, str) else None

    def own(self, values: dict[str, Any]) -> dict[str, Any]:
        """Its own columns: its key, and the values of its JSON without the caption."""
        rest = {name: value for name, value in values.items() if name not in ("key", "caption")}
        return {"key": display(self.key), **rest}


def samples(tar: Tar, *, images: bool, max_image_bytes: int) -> Iterator[Sample]:
    """The rows of a tar that are certainly whole. Of several images the first is taken.

    Args:
        images: whether the images' bytes are read; if not, rows have the images' names alone.
        max_image_bytes: the largest image. The row of a larger one has an error.

    Raises:
        BrokenTar: the tar breaks. The row that it may have cut in two is not given.
        OSError: the file cannot be read.
    """
    limits = {IMAGE: max_image_bytes, TEXT: TEXT_BYTES, JSON: TEXT_BYTES}
    sample: Sample | None = None
    for member in tar.members():
        name = raw_name(member)
        folder, slash, base = name.rpartition(b"/")
        stem, dot, suffix = base.partition(b".")
        if member.isdir() or not stem or not dot:
            continue
        key, suffix = folder + slash + stem, suffix.lower()
        if sample is None or sample.key != key or suffix in sample.suffixes:
            if sample is not None:
                yield sample
            sample = Sample(key)
        sample.suffixes.add(suffix)
        kind = KINDS.get(suffix)
        if kind == IMAGE:
            if sample.image is not None:
                continue
            sample.image = name
            if not images:
                continue
        if kind is not None:
            _take(tar, member, limits[kind], kind, sample)
    if sample is not None:
        yield sample


def raw_name(member: tarfile.TarInfo) -> bytes:
    """A member's name as it is in the tar: it need not be UTF-8."""
    return member.name.encode("utf-8", "surrogateescape")


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file whose data are in the tar as they are."""
    return member.isreg() and not member.issparse()


def _take(tar: Tar, member: tarfile.TarInfo, limit: int, kind: str, sample: Sample) -> None:
    """Read a member's data into its row. If they cannot be read, the row has an error, and no byte of them is read."""
    if not is_plain(member):
        wrong = "is a link or a device, or has holes"
    elif member.size > limit:
        wrong = f"has {member.size} bytes, {limit} at most"
    else:
        sample.data[kind] = tar.take(member)
        return
    if sample.error is None:
        sample.error = BadInput(f"{display(raw_name(member))} {wrong}")
