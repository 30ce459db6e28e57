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

MAX_MEMBERS = 64  # images of a sample, or texts

IMAGE, TEXT, JSON = "image", "text", "json"  # kinds of members that are read

What = tuple[str, bytes]  # the kind of a member, and its stem; of an image that could not be read, its name


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

    def kind(self, suffix: bytes) -> What | None:
        """The kind of a member and its stem, what stands before that in its suffix; None: it is not read.

        Beside ``NAME.left.png``, ``NAME.left.txt`` is the caption of that image, ``NAME.txt`` of all the sample's.
        """
        for kind, end in ((TEXT, self.text), (JSON, b"json")):
            if end and (suffix == end or suffix.endswith(b"." + end)):
                return kind, suffix[: -len(end) - 1]
        is_image = suffix == self.image if self.image is not None else suffix.rpartition(b".")[2] in SUFFIXES
        return (IMAGE, suffix.rpartition(b".")[0]) if is_image else None


@dataclass(slots=True)
class Sample:
    """A sample as it is in the tar, not yet parsed: a row for each of its images, or for each of its texts.

    Attributes:
        key: the name that its members share.
        wanted: which of its members are read.
        suffixes: the rest of their names.
        images: its images' bytes by name, None where they are not read.
        stems: the images' stems, by name.
        data: the other members' bytes.
        errors: why members could not be read: texts by their stems, images by their names (none: all of them).
    """

    key: bytes
    wanted: Wanted = Wanted()
    suffixes: set[bytes] = field(default_factory=set)
    images: dict[bytes, bytes | None] = field(default_factory=dict)
    stems: dict[bytes, bytes] = field(default_factory=dict)
    data: dict[What, bytes] = field(default_factory=dict)
    errors: dict[What, BadInput] = field(default_factory=dict)

    def rows(self, *, images: bool) -> list[tuple[bytes | None, bytes]]:
        """The image's name and the stem of each row; without ``images``, of each row that texts make."""
        if images and self.images:
            return [(name, self.stems[name]) for name in self.images]
        stems = list(dict.fromkeys(stem for kind, stem in (*self.data, *self.errors) if kind != IMAGE))
        if not stems or b"" in stems:
            return [(next(iter(self.images), None), b"")]
        names = {stem: name for name, stem in reversed(self.stems.items())}
        return [(names.get(stem), stem) for stem in stems]

    def named(self, stem: bytes) -> str:
        """The name that the members of a stem share."""
        return display(self.key + b"." + stem if stem else self.key)

    def image_error(self, name: bytes) -> BadInput | None:
        """Why an image could not be read."""
        return self.errors.get((IMAGE, b"")) or self.errors.get((IMAGE, name))

    def values(self, stem: bytes) -> dict[str, Any]:
        """The values of a row's JSON. Raises :class:`BadInput` if it cannot be read or is not a JSON object."""
        at = self._found(JSON, stem)
        return {} if at is None else json_object(self.data[JSON, at], f"{self.named(at)}.json")

    def caption(self, stem: bytes, values: dict[str, Any]) -> str | None:
        """A row's caption: NAME.txt, else ``caption`` in its JSON, or as it is wanted; None if it has none or an empty
        one.

        Raises:
            BadInput: it cannot be read, is no text, or not UTF-8.
        """
        at = self._found(TEXT, stem)
        if at is not None:
            try:
                return self.data[TEXT, at].decode("utf-8-sig").strip() or None
            except UnicodeDecodeError as error:
                raise BadInput(f"{self.named(at)}.{display(self.wanted.text)} is not UTF-8") from error
        caption = text_of(values.get(self.wanted.key))
        return caption.strip() if caption else None

    def own(self, values: dict[str, Any]) -> dict[str, Any]:
        """Its own columns: its key, and the values of its JSON without the caption."""
        rest = {name: value for name, value in values.items() if name not in ("key", self.wanted.key)}
        return {"key": display(self.key), **rest}

    def _found(self, kind: str, stem: bytes) -> bytes | None:
        """The stem of the text or JSON of a row: its own, or that of all rows. Raises why it could not be read."""
        for at in (stem, b""):
            if (kind, at) in self.errors:
                raise self.errors[kind, at]
            if (kind, at) in self.data:
                return at
        return None


def samples(tar: Archive, *, images: bool, max_image_bytes: int, wanted: Wanted = Wanted()) -> Iterator[Sample]:
    """The samples of a tar that are certainly whole.

    Args:
        images: whether the images' bytes are read; if not, rows have the images' names alone.
        max_image_bytes: the largest image. A larger one has an error; all of a sample have one if they are larger
            together than two of them may be, or more than :data:`MAX_MEMBERS`.
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
        what = wanted.kind(suffix)
        if what and what[0] == IMAGE:
            sample.stems[name] = what[1]
            _take_image(tar, member, max_image_bytes if images else None, sample)
        elif what and (data := _take(tar, member, TEXT_BYTES, sample, what)) is not None:
            sample.data[what] = data
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
    name = raw_name(member)
    sample.images[name] = None
    if limit is None:
        return
    held = sum(len(data) for data in sample.images.values() if data)
    if len(sample.images) > MAX_MEMBERS or (held and held + member.size > 2 * limit):
        many = f"more than {MAX_MEMBERS} images, or {2 * limit} bytes of them"
        sample.errors[IMAGE, b""] = BadInput(f"{display(sample.key)} has {many}: choose one with the image column")
        return
    sample.images[name] = _take(tar, member, limit, sample, (IMAGE, name))


def _take(tar: Archive, member: tarfile.TarInfo, limit: int, sample: Sample, what: What) -> bytes | None:
    """A member's data. If they cannot be read, the sample has an error, and no byte of them is read."""
    if not is_plain(member):
        wrong = "is a link or a device, or has holes"
        if member.islnk():
            wrong = "is a hard link: make the tar with --hard-dereference"
    elif member.size > limit:
        wrong = f"has {member.size} bytes, {limit} at most"
    elif what[0] != IMAGE and len(sample.data) >= MAX_MEMBERS:
        wrong = f"is one of more than {MAX_MEMBERS} texts of {display(sample.key)}"
    else:
        try:
            return tar.take(member)
        except BadInput as error:  # of a zip's member
            sample.errors[what] = error
            return None
    sample.errors[what] = BadInput(f"{display(raw_name(member))} {wrong}")
    return None
