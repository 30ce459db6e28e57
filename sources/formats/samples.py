"""The rows of a tar as webdataset has them: members that follow each other and share a name up to its first dot."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import get_settings
from clip_queue.sources.formats.image_files import SUFFIXES
from clip_queue.sources.formats.tars import Tar
from clip_queue.sources.storage import shown

TEXT_BYTES = 2**20  # of a .txt or .json, at most

PICTURE, TEXT, JSON = b"picture", b"txt", b"json"  # kinds of members that are read


@dataclass(slots=True)
class Sample:
    """A row as its tar has it, not yet understood. ``data`` by kind; what could not be had of it is the ``error``."""

    key: bytes
    suffixes: set[bytes] = field(default_factory=set)
    picture: bytes | None = None  # the member's name
    data: dict[bytes, bytes] = field(default_factory=dict)
    error: BadInput | None = None

    def values(self) -> dict[str, Any]:
        """What its JSON says. Raises :class:`BadInput` if that is none."""
        data = self.data.get(JSON, b"{}")
        try:
            try:
                value = orjson.loads(data)
            except ValueError:
                # Python writes NaN, and so does img2dataset: null here. The detour refuses halves of surrogate pairs.
                value = orjson.loads(orjson.dumps(json.loads(data.decode("utf-8-sig"))))
        except (ValueError, TypeError, RecursionError) as error:
            raise BadInput(f"{shown(self.key)}.json is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise BadInput(f"{shown(self.key)}.json is no object")
        return value

    def caption(self, values: dict[str, Any]) -> str | None:
        """Its caption: NAME.txt, else what its JSON calls so; None where there is nothing in it.

        Raises:
            BadInput: it is not UTF-8.
        """
        if TEXT in self.data:
            try:
                return self.data[TEXT].decode("utf-8-sig").strip() or None
            except UnicodeDecodeError as error:
                raise BadInput(f"{shown(self.key)}.txt is not UTF-8") from error
        caption = values.get("caption")
        return caption.strip() or None if isinstance(caption, str) else None

    def own(self, values: dict[str, Any]) -> dict[str, Any]:
        """Its own columns: its key, and what its JSON says but for the caption."""
        rest = {name: value for name, value in values.items() if name not in ("key", "caption")}
        return {"key": shown(self.key), **rest}


def samples(tar: Tar, *, pictures: bool) -> Iterator[Sample]:
    """The rows that are whole for sure; :class:`BrokenTar` then drops the one that it may have cut in two.

    Of several pictures the first is taken; without ``pictures`` it is named, and its bytes are left out.
    """
    limits = {PICTURE: get_settings().max_image_bytes, TEXT: TEXT_BYTES, JSON: TEXT_BYTES}
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
        kind = PICTURE if suffix in SUFFIXES else suffix
        if kind == PICTURE:
            if sample.picture is not None:
                continue
            sample.picture = name
            if not pictures:
                continue
        if kind in limits:
            _take(tar, member, limits[kind], kind, sample)
    if sample is not None:
        yield sample


def raw_name(member: tarfile.TarInfo) -> bytes:
    return member.name.encode("utf-8", "surrogateescape")


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether its data stand in the tar as they are."""
    return member.isreg() and not member.issparse()


def _take(tar: Tar, member: tarfile.TarInfo, limit: int, kind: bytes, sample: Sample) -> None:
    """A member's data, or why it cannot be had, in which case nothing of it is read."""
    if not is_plain(member):
        wrong = "is a link or a device, or has holes"
    elif member.size > limit:
        wrong = f"has {member.size} bytes, {limit} at most"
    else:
        sample.data[kind] = tar.take(member)
        return
    if sample.error is None:
        sample.error = BadInput(f"{shown(raw_name(member))} {wrong}")
