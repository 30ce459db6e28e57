"""Archives whose members NAME.jpg, NAME.txt and NAME.json make a row: tars, compressed or not, or zips.

A sample is a sequence of members whose names are the same up to the first dot after the last slash (the folder belongs
to the name). Each member with an image's suffix (NAME.jpg, NAME.left.png) is a row. The caption is NAME.txt, or
``caption`` in NAME.json; of NAME.left.png, NAME.left.txt goes before. The other values in NAME.json are the rows'
columns, and ``key`` is NAME. The image column chooses one image by its suffix (``left.png``), the text column another
caption: the suffix of a text, or ``json.KEY``.
Nothing is unpacked to disk. A compressed tar is unpacked as it is read; a zip's members are read in the order of their
names, and one that is encrypted or broken costs its own row.

An archive is a shard, whatever the size of shards: only reading it tells how many rows it has. What is said of tars
below is true of zips as well.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import orjson

from clip_queue.shared.errors import BadImage, BadInput, ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import (
    conform,
    name_in,
)
from clip_queue.sources.discovery import containers, root
from clip_queue.sources.discovery import name as relative_name
from clip_queue.sources.formats.archives import archive_of
from clip_queue.sources.formats.samples import TEXT_BYTES, Sample, Wanted, samples
from clip_queue.sources.formats.table import files_at, of_halves
from clip_queue.sources.formats.tar_index import index_of
from clip_queue.sources.formats.tar_survey import completed, wanted_columns
from clip_queue.sources.formats.tars import BrokenTar
from clip_queue.sources.left_out import PASSED, Passed
from clip_queue.sources.registry import FORMATS
from clip_queue.sources.source import (
    COLUMNS,
    IMAGE_HALF,
    IMAGES,
    TEXT_HALF,
    TEXTS,
    BrokenContainer,
    Piece,
    Place,
    Planned,
    Row,
    Shard,
    Source,
    SourceError,
)
from clip_queue.sources.storage import LOCAL, display, opened, read_bytes, spellings, split

APART = " In a tar the members of a row stand one after the other: make it with --sort=name."
SUFFIX_ENDS = tuple(end for name in ("webdataset", "zip") for end in FORMATS[name].suffixes + FORMATS[name].compressed)


def plan_shards(source: Source, shard_size: int, settings: Settings) -> Planned:  # noqa: ARG001 - a tar is a shard
    """A shard for each tar. Where ``source`` does not say it, the rows of the tars tell whether they hold images and
    captions, and the first rows of the first tar the columns of their JSON.

    Raises:
        SourceError: there are no tars, none can be read, or they hold nothing to embed.
    """
    spec, passed = FORMATS[source.format], Passed()
    found = containers(source.url, spec.suffixes, spec.compressed, passed)
    protocol, _ = split(source.url)
    done = completed(source, protocol, [path for path, _ in found], settings.max_image_bytes)
    done = replace(done, storage={**done.storage, PASSED: passed, "root": root(source.url)})
    return done, (Shard([Piece(path, size=size)], None) for path, size in found)


def read(source: Source, pieces: list[Piece], settings: Settings) -> Iterator[Row]:
    """The rows of tars.

    If a tar breaks, the rows before the break are kept. The row that is cut in two and all that follow it are one row
    that fails and says how many rows are lost, if that is known.

    Raises:
        SourceError: a tar is not the one that was planned.
        OSError: a tar could not be read, but may be readable the next time.
    """
    protocol, _ = split(source.url)
    for piece in pieces:
        name, rows = relative_name(source.storage["root"], piece.path), 0
        try:
            with opened(protocol, piece.path) as (file, size):
                if piece.size >= 0 and size not in (piece.size, -1):
                    raise SourceError(f"{name} has changed since it was planned: {piece.size} bytes then, {size} now")
                total = size
                limit, wanted = settings.max_image_bytes, Wanted.of(source.image_column, source.text_column)
                archive = archive_of(file, size)
                total = archive.size
                for sample in samples(archive, images=bool(source.images), max_image_bytes=limit, wanted=wanted):
                    for row in _rows(source, name, sample):
                        row.place = Place(name, rows)
                        yield row
                        rows += 1
            continue
        except BrokenTar as error:
            of = "" if total < 0 else f" of {total}"
            cause = f"is broken at byte {error.at}{of} ({error.what}), after {rows} rows"
        except FileNotFoundError:
            cause = "does not exist any more"
        except PermissionError as error:
            if protocol != LOCAL:  # a login that ran out
                raise
            cause = f"cannot be read: {error.strerror}"
        message = f"{name} {cause}; {_lost(protocol, piece.path, rows)}"
        columns = {**conform({}, source.columns), "image_path": name, "caption": None}
        yield Row(columns, error=BrokenContainer(message), place=Place(name, rows))


def find_image(source: Source, image_path: str, settings: Settings, place: Place | None = None) -> bytes:
    """The encoded image of the row that has this ``image_path``; of several in a tar, the one at ``place``, else the
    first.

    Raises:
        BadImage: there is no such image.
        OSError: the tar cannot be read.
    """
    protocol, _ = split(source.url)
    limit = settings.max_image_bytes
    if place is not None and place.number is not None and image_path.startswith(f"{place.file}/"):
        found = _image_at(source, image_path, place, settings)
        if found is not None:
            return found
    failure: OSError | None = None
    # The slash where the tar's path ends and the member's begins: most likely the one after .tar or .zip.
    cuts = [match.start() for match in re.finditer("/", image_path)]
    for cut in sorted(cuts, key=lambda cut: not image_path[:cut].lower().endswith(SUFFIX_ENDS)):
        tar, member = image_path[:cut], image_path[cut + 1 :]
        for name in [] if ".." in tar.split("/") else spellings(tar):
            path = os.fsencode(source.storage["root"]) + b"/" + name
            try:
                at, size = index_of(protocol, path, source.image_column)[0][member]
                with opened(protocol, path) as (file, total):
                    return archive_of(file, total).at(at, min(size, limit + 1))
            except (KeyError, NotADirectoryError):
                continue
            except BrokenTar as error:
                raise BadImage.because(f"{image_path} cannot be read: {error.what}.") from error
            except OSError as error:
                failure = failure or error
    raise failure or BadImage.because(f"{image_path} is not in {source.shown}.")


def _image_at(source: Source, image_path: str, place: Place, settings: Settings) -> bytes | None:
    """The image of a row where its tar has several members of that name; None: it has one, or the row is not there."""
    protocol, _ = split(source.url)
    for path in files_at(source, place):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if image_path[len(place.file) + 1 :] not in index_of(protocol, path, source.image_column)[1]:
                return None
            row = next(islice(read(source, [Piece(path)], settings), place.number, None), None)
            return row.image if row and isinstance(row.image, bytes) else None
    return None


def _rows(source: Source, tar: str, sample: Sample) -> Iterator[Row]:
    """A sample's rows, with what is wrong with their halves."""
    images = bool(source.images)
    for image, stem in sample.rows(images=images):
        faults: dict[str, ClipError] = {}
        values: dict[str, Any] = {}
        caption = None
        if images and image is None:
            suffixes = ", ".join(f".{display(suffix)}" for suffix in sorted(sample.suffixes)[:8])
            apart = "" if tar.endswith(".zip") or sample.suffixes - {b"txt", b"json"} else APART
            faults[IMAGE_HALF] = BadImage.because(f"The row has no image, only {suffixes}.{apart}")
        elif images and image and (error := sample.image_error(image)):
            faults[IMAGE_HALF] = error
        unread: dict[str, ClipError] = {}
        try:
            values = sample.values(stem)
        except BadInput as error:
            unread[COLUMNS] = error
        try:
            caption = sample.caption(stem, values)
        except BadInput as error:
            faults |= {TEXT_HALF: error} if source.texts else {}
        faults |= unread
        left_out = [IMAGES] if sample.images and not images else []
        if caption is not None and not source.texts:
            left_out.append(TEXTS)
        path = f"{tar}/{display(image) if image else sample.named(stem)}"
        columns = {
            **conform(wanted_columns(source, sample.own(values)), source.columns, partial(name_in, source)),
            "image_path": path,
            "caption": caption,
        }
        data = None if IMAGE_HALF in faults else sample.images.get(image or b"")
        yield of_halves(Row(columns, data, caption, faults=faults, left_out=tuple(left_out)), source)


def _lost(protocol: str, path: bytes, rows: int) -> str:
    """How many rows a broken tar loses, if img2dataset has written its count in a file beside it."""
    # There is no such file, or it cannot be read or understood.
    with contextlib.suppress(OSError, ClipError, ValueError, KeyError, TypeError):
        stats = path.rpartition(b".")[0] + b"_stats.json"
        count = orjson.loads(read_bytes(protocol, stats, TEXT_BYTES))["successes"]
        if isinstance(count, int) and count > rows:
            return f"{count - rows} of its {count} rows are lost"
    return "how many rows are lost cannot be told"
