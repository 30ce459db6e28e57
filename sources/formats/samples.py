"""The rows of a tar as webdataset defines them: members in sequence that share a name up to its first dot."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from clip_queue.shared.errors import BadInput
from clip_queue.sources.formats.archives import Archive
from clip_queue.sources.formats.image_files import SUFFIXES
from clip_queue.sources.formats.table import text_of
from clip_queue.sources.json_object import json_object
from clip_queue.sources.storage import display

TEXT_BYTES = 2**20  # the longest .txt or .json

MAX_IMAGES = 64  # images of a sample

IMAGE, TEXT, JSON = "image", "text", "json"  # kinds of members that are read


@dataclass(frozen=True)
class Wanted:
    """Which members are read, by suffix in small letters; ``image``: of one of several images alone, None: of all.

    ``text`` is the suffix of captions, ``key`` the name of a caption in a sample's JSON.
    """

    image: bytes | None = None
    text: bytes = b"txt"
    key: str = "caption"

    @classmethod
    def of(cls, image_column: str | None, text_column: str | None) -> Wanted:
        """What columns mean in a tar: the suffix of a member, or ``json.KEY``."""
        image = image_column.lower().encode() if image_column else None
        if text_column is None:
            return cls(image)
        head, dot, key = text_column.partition(".")
        if head.lower() == "json" and dot:
            return cls(image, b"", key)
        return cls(image, text_column.lower().encode(), "")

    def kind(self, suffix: bytes) -> str | None:
        """The kind of a member; None: it is not read."""
        if suffix == self.text:
            return TEXT
        if suffix == b"json":
            return JSON
        if self.image is not None:
            return IMAGE if suffix == self.image else None
        return IMAGE if suffix.rpartition(b".")[2] in SUFFIXES else None


@dataclass(slots=True)
class Sample:
    """A sample as it is in the tar, not yet parsed: a row for each of its images, or one that has none.

    Attributes:
        key: the name that its members share.
        wanted: which of its members are read.
        suffixes: the rest of their names.
        images: its images' bytes by name, None where they are not read.
        data: the other members' bytes, by kind.
        errors: why members could not be read, by kind: the first of each kind.
    """

    key: bytes
    wanted: Wanted = Wanted()
    suffixes: set[bytes] = field(default_factory=set)
    images: dict[bytes, bytes | None] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)
    errors: dict[str, BadInput] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The values of its JSON. Raises :class:`BadInput` if that is not a JSON object."""
        return json_object(self.data.get(JSON, b"{}"), f"{display(self.key)}.json")

    def caption(self, values: dict[str, Any]) -> str | None:
        """Its caption: NAME.txt, else ``caption`` in its JSON, or as it is wanted; None if it has none or an empty one.

        Raises:
            BadInput: it is no text, or not UTF-8.
        """
        if TEXT in self.data:
            try:
                return self.data[TEXT].decode("utf-8-sig").strip() or None
            except UnicodeDecodeError as error:
                raise BadInput(f"{display(self.key)}.{display(self.wanted.text)} is not UTF-8") from error
        caption = text_of(values.get(self.wanted.key))
        return caption.strip() if caption else None

    def own(self, values: dict[str, Any]) -> dict[str, Any]:
        """Its own columns: its key, and the values of its JSON without the caption."""
        rest = {name: value for name, value in values.items() if name not in ("key", self.wanted.key)}
        return {"key": display(self.key), **rest}


def samples(tar: Archive, *, images: bool, max_image_bytes: int, wanted: Wanted = Wanted()) -> Iterator[Sample]:
    """The samples of a tar that are certainly whole.

    Args:
        images: whether the images' bytes are read; if not, rows have the images' names alone.
        max_image_bytes: the largest image. A sample with a larger one has an error, as has one whose images are larger
            together than two of them may be, or more than :data:`MAX_IMAGES`.
        wanted: which members are read.

    Raises:
        BrokenTar: the tar breaks. The row that it may have cut in two is not given.
        OSError: the file cannot be read.
    """
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
            sample = Sample(key, wanted)
        sample.suffixes.add(suffix)
        kind = wanted.kind(suffix)
        if kind == IMAGE:
            _take_image(tar, member, max_image_bytes if images else None, sample)
        elif kind is not None and (data := _take(tar, member, TEXT_BYTES, sample, kind)) is not None:
            sample.data[kind] = data
    if sample is not None:
        yield sample


def raw_name(member: tarfile.TarInfo) -> bytes:
    """A member's name as it is in the tar: it need not be UTF-8."""
    return member.name.encode("utf-8", "surrogateescape")


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file whose data are in the tar as they are."""
    return member.isreg() and not member.issparse()


def _take_image(tar: Archive, member: tarfile.TarInfo, limit: int | None, sample: Sample) -> None:
    """Note an image of a sample, and read it unless ``limit`` is None."""
    sample.images[raw_name(member)] = None
    if limit is None:
        return
    held = sum(len(data) for data in sample.images.values() if data)
    if len(sample.images) > MAX_IMAGES or (held and held + member.size > 2 * limit):
        many = f"more than {MAX_IMAGES} images, or {2 * limit} bytes of them"
        sample.errors.setdefault(IMAGE, BadInput(f"{display(sample.key)} has {many}: choose one with the image column"))
        return
    sample.images[raw_name(member)] = _take(tar, member, limit, sample, IMAGE)


def _take(tar: Archive, member: tarfile.TarInfo, limit: int, sample: Sample, kind: str) -> bytes | None:
    """A member's data. If they cannot be read, the sample has an error, and no byte of them is read."""
    if not is_plain(member):
        wrong = "is a link or a device, or has holes"
    elif member.size > limit:
        wrong = f"has {member.size} bytes, {limit} at most"
    else:
        try:
            return tar.take(member)
        except BadInput as error:  # of a zip's member
            sample.errors.setdefault(kind, error)
            return None
    sample.errors.setdefault(kind, BadInput(f"{display(raw_name(member))} {wrong}"))
    return None
