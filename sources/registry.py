"""The formats of sources: one entry for each, and how a source is planned and read by its format.

To add a format: write its module (see :mod:`clip_queue.sources.source`) and add its entry to :data:`FORMATS`. A
format's module is imported when it is used: its packages belong to an extra, and this module needs none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from clip_queue.shared.settings import Settings
from clip_queue.sources.confinement import check_containers
from clip_queue.sources.place import placed
from clip_queue.sources.source import Piece, Place, Planned, Row, Source, SourceError

PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".br", ".zip")  # suffixes of compressed files
UNPACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4")  # of these, what is read
IMAGE_FOLDER = "folder"  # the format of a folder that holds nothing known


# Options of reading that only some formats have. What is asked for comes in ``Source.storage``, under these names.
READING = ("columns", "delimiter", "encoding", "quoting", "image_root")


@dataclass(frozen=True)
class FormatSpec:
    """A format of sources.

    Attributes:
        name: what the user and the manifest call it.
        module: the module that plans and reads it, imported when it is used.
        words: what such a source is, for help texts.
        suffixes: how the names of its files end, in small letters.
        compressed: how the names of its compressed files end. The module reads them, or refuses them and says what to
            do.
        rank: a folder that holds files of several formats is of the format with the lowest rank.
        decisive: whether one such file decides what its folder is. Files that are not decisive may lie beside others
            (README.txt), so they count only where the folder and those below it hold no decisive file.
        sidecar: a file NAME + ``sidecar`` beside a folder NAME describes that folder and is no file of this format.
        options: which of :data:`READING` its module heeds.
        has_rows: whether a file is a table of rows that shards share; its module then has ``recut``.
    """

    name: str
    module: str
    words: str
    suffixes: tuple[str, ...]
    compressed: tuple[str, ...] = ()
    rank: int = 0
    decisive: bool = True
    sidecar: str = ""
    options: tuple[str, ...] = ()
    has_rows: bool = False


def _packed(*suffixes: str) -> tuple[str, ...]:
    return tuple(suffix + packed for suffix in suffixes for packed in PACKED)


FORMATS: dict[str, FormatSpec] = {
    spec.name: spec
    for spec in (
        FormatSpec(
            name=IMAGE_FOLDER,
            module="clip_queue.sources.formats.folder",
            words="folder of images",
            suffixes=(
                *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
                *(".tif", ".tiff", ".avif", ".heic", ".heif", ".mpo", ".ppm", ".jp2"),
            ),
            rank=4,
        ),
        FormatSpec(
            name="webdataset",
            module="clip_queue.sources.formats.webdataset",
            words="tars",
            suffixes=(".tar",),
            compressed=(
                *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4"),
            ),
            options=("columns",),
            rank=1,  # img2dataset writes a parquet beside each tar
        ),
        FormatSpec(
            name="zip",
            module="clip_queue.sources.formats.webdataset",
            words=".zip",
            suffixes=(".zip",),
            options=("columns",),
            rank=7,  # often what its folder was unpacked from
            decisive=False,
        ),
        FormatSpec(
            name="parquet",
            has_rows=True,
            module="clip_queue.sources.formats.parquet",
            words="parquet",
            suffixes=(".parquet", ".pq", ".parq"),
            options=("columns", "image_root"),
            rank=2,
            sidecar=".parquet",  # img2dataset, told to write files, reports on each folder of images in such a file
        ),
        FormatSpec(
            name="arrow",
            has_rows=True,
            module="clip_queue.sources.formats.parquet",
            words=".arrow",
            suffixes=(".arrow", ".feather"),
            options=("columns", "image_root"),
            rank=3,
        ),
        FormatSpec(
            name="text",
            has_rows=True,
            module="clip_queue.sources.formats.text",
            words=".txt",
            suffixes=(".txt", ".text"),
            compressed=_packed(".txt", ".text"),
            options=("encoding",),
            rank=8,
            decisive=False,
        ),
        FormatSpec(
            name="csv",
            has_rows=True,
            module="clip_queue.sources.formats.csv",
            words=".csv",
            suffixes=(".csv", ".tsv"),
            compressed=_packed(".csv", ".tsv"),
            options=("columns", "delimiter", "encoding", "quoting", "image_root"),
            rank=6,
            decisive=False,
        ),
        FormatSpec(
            name="jsonl",
            has_rows=True,
            module="clip_queue.sources.formats.jsonl",
            words=".jsonl",
            suffixes=(".jsonl", ".ndjson"),
            compressed=_packed(".jsonl", ".ndjson"),
            options=("columns", "encoding", "image_root"),
            rank=5,
            decisive=False,
        ),
        FormatSpec(
            name="json",
            has_rows=True,
            module="clip_queue.sources.formats.jsonl",
            words=".json",
            suffixes=(".json",),
            compressed=_packed(".json"),
            options=("columns", "encoding", "image_root"),
            rank=9,
            decisive=False,
        ),
    )
}


class FormatModule(Protocol):
    """What a format's module offers; :mod:`clip_queue.sources.source` describes it."""

    def plan_shards(self, source: Source, shard_size: int, settings: Settings) -> Planned: ...

    def read(self, source: Source, pieces: list[Piece], settings: Settings) -> Iterator[Row]: ...

    def find_image(self, source: Source, image_path: str, settings: Settings, place: Place | None = None) -> bytes: ...

    def recut(self, source: Source, path: bytes, sizes: Iterator[int]) -> Iterator[Piece]: ...


def plan_shards(source: Source, shard_size: int, settings: Settings) -> Planned:
    """The source completed, and its shards of ``shard_size`` rows (tars: a shard each).

    Raises:
        SourceError: the source does not exist, cannot be read, or holds nothing to embed. The iterator of shards
            raises it as well.
    """
    return _module(source).plan_shards(source, shard_size, settings)


def read(source: Source, pieces: list[Piece], settings: Settings) -> Iterator[Row]:
    """The rows of a shard, in order, with their places.

    Raises:
        SourceError: the source is not the one that was planned, or its store is away.
        OSError: the shard cannot be read at all.
    """
    if source.format != IMAGE_FOLDER:  # whose files are looked at one by one
        check_containers(source, pieces)
    return placed(source, _module(source).read(source, pieces, settings))


def recut(source: Source, path: bytes, sizes: Iterator[int]) -> Iterator[Piece]:
    """The rows of a file of a table (``FormatSpec.has_rows``) as it is now, in pieces of so many rows as ``sizes`` says
    each time, as long as there are any. The last one may have fewer.

    Args:
        source: completed, by what :func:`plan_shards` says of it now.

    Raises:
        SourceError: it cannot be read.
    """
    return _module(source).recut(source, path, sizes)


def find_image(source: Source, image_path: str, settings: Settings, place: Place | None = None) -> bytes:
    """The encoded image of the row that has this ``image_path``, at most ``max_image_bytes`` + 1 bytes of it.

    Args:
        place: where the row comes from, which tells rows with the same ``image_path`` apart; None: not known.

    Raises:
        ClipError: there is no such image, or it cannot be read.
        OSError: it cannot be read.
    """
    try:
        return _module(source).find_image(source, image_path, settings, place)
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:
            raise
        from clip_queue.sources.storage import reason  # needs fsspec, which the format's module has loaded by now

        raise OSError(f"{image_path} cannot be read: {reason(error)}") from error


def forget_files() -> None:
    """Look at the sources' files again when an image is asked for next: they may have changed."""
    from clip_queue.sources.formats import parquet, table, tar_index

    for module in (parquet, table, tar_index):
        module.forget_files()


def names() -> tuple[str, ...]:
    """The names of all formats."""
    return tuple(FORMATS)


def listed() -> str:
    """The names of all formats as a phrase, for help texts."""
    return _phrase(names())


def described() -> str:
    """What a source can be, as a phrase, for help texts."""
    return _phrase(tuple(spec.words for spec in FORMATS.values()))


def sought() -> str:
    """The files that a source is recognised by, as a phrase, for messages."""
    files = tuple(spec.suffixes[0] for spec in FORMATS.values() if spec.name != IMAGE_FOLDER)
    return f"a {FORMATS[IMAGE_FOLDER].words}, or {_phrase(files)} files"


def _phrase(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _module(source: Source) -> FormatModule:
    spec = FORMATS.get(source.format)
    if spec is None:
        raise SourceError(f"format {source.format!r} is not known: use one of {', '.join(FORMATS)}")
    return cast(FormatModule, importlib.import_module(spec.module))
