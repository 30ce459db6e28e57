"""Archives whose members NAME.jpg, NAME.txt and NAME.json make a row: tars, compressed or not, or zips.

A sample is a sequence of members whose names are the same up to the first dot after the last slash (the folder belongs
to the name). Each member with an image's suffix (NAME.jpg, NAME.left.png) is a row. The caption is NAME.txt, or
``caption`` in NAME.json. The other values in NAME.json are the rows' columns, and ``key`` is NAME. The image column
chooses one image by its suffix (``left.png``), the text column another caption: the suffix of a text, or ``json.KEY``.
Nothing is unpacked to disk. A compressed tar is unpacked as it is read; a zip's members are read in the order of their
names, and one that is encrypted or broken costs its own row.

An archive is a shard, whatever the size of shards: only reading it tells how many rows it has. What is said of tars
below is true of zips as well.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import orjson

from clip_queue.shared.errors import BadImage, BadInput, ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import WANTED, check_wanted, conform, infer, is_wanted, listed, with_wanted
from clip_queue.sources.discovery import containers, root
from clip_queue.sources.discovery import name as relative_name
from clip_queue.sources.formats.archives import archive_of
from clip_queue.sources.formats.samples import IMAGE, JSON, TEXT, TEXT_BYTES, Sample, Wanted, samples
from clip_queue.sources.formats.table import files_at, of_halves
from clip_queue.sources.formats.tar_index import index_of
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
from clip_queue.sources.storage import LOCAL, display, opened, read_bytes, reason, spellings, split

SUFFIX_ENDS = tuple(end for name in ("webdataset", "zip") for end in FORMATS[name].suffixes + FORMATS[name].compressed)
SAMPLE_ROWS = 100  # rows that tell what the tars hold
SAMPLE_TARS = 8  # tars that are tried until one has a row
THREADS = 8  # tars that are looked at at once


def plan_shards(source: Source, shard_size: int, settings: Settings) -> Planned:  # noqa: ARG001 - a tar is a shard
    """A shard for each tar. Where ``source`` does not say it, the first :data:`SAMPLE_ROWS` rows of the tars tell
    whether they hold images and captions (of this machine's first tar, all of its rows), and those of the first tar the
    columns of their JSON.

    Raises:
        SourceError: there are no tars, none can be read, or they hold nothing to embed.
    """
    spec, passed = FORMATS[source.format], Passed()
    found = containers(source.url, spec.suffixes, spec.compressed, passed)
    protocol, _ = split(source.url)
    done = _completed(source, protocol, [path for path, _ in found], settings.max_image_bytes)
    done = replace(done, storage={**source.storage, PASSED: passed, "root": root(source.url)})
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
                at, size = index_of(protocol, path)[0][member]
                with opened(protocol, path) as (file, total):
                    return archive_of(file, total).at(at, min(size, limit + 1))
            except (KeyError, NotADirectoryError):
                continue
            except BrokenTar as error:
                raise BadImage.because(f"{image_path} cannot be read: {error.what}.") from error
            except OSError as error:
                failure = failure or error
    raise failure or BadImage.because(f"{image_path} is not in {source.url}.")


def _image_at(source: Source, image_path: str, place: Place, settings: Settings) -> bytes | None:
    """The image of a row where its tar has several members of that name; None: it has one, or the row is not there."""
    protocol, _ = split(source.url)
    for path in files_at(source, place):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if image_path[len(place.file) + 1 :] not in index_of(protocol, path)[1]:
                return None
            row = next(islice(read(source, [Piece(path)], settings), place.number, None), None)
            return row.image if row and isinstance(row.image, bytes) else None
    return None


def _rows(source: Source, tar: str, sample: Sample) -> Iterator[Row]:
    """A sample's rows, with what is wrong with their halves."""
    faults: dict[str, ClipError] = {}
    if source.images and IMAGE in sample.errors:
        faults[IMAGE_HALF] = sample.errors[IMAGE]
    elif source.images and not sample.images:
        suffixes = ", ".join(f".{display(suffix)}" for suffix in sorted(sample.suffixes)[:8])
        faults[IMAGE_HALF] = BadImage.because(f"The row has no image, only {suffixes}.")
    values: dict[str, Any] = {}
    caption, unread = None, None
    try:
        if JSON in sample.errors:
            raise sample.errors[JSON]
        values = sample.values()
    except BadInput as error:
        unread = error
    try:
        if TEXT in sample.errors:
            raise sample.errors[TEXT]
        caption = sample.caption(values)
    except BadInput as error:
        faults |= {TEXT_HALF: error} if source.texts else {}
    if unread:
        faults[COLUMNS] = unread
    left_out = [IMAGES] if sample.images and not source.images else []
    if caption is not None and not source.texts:
        left_out.append(TEXTS)
    own = conform(_wanted(source, sample.own(values)), source.columns)
    for image, data in (sample.images if source.images else {}).items() or [(next(iter(sample.images), None), None)]:
        columns = {**own, "image_path": f"{tar}/{display(image or sample.key)}", "caption": caption}
        yield of_halves(Row(columns, data, caption, faults=dict(faults), left_out=tuple(left_out)), source)


# Planning


def _completed(source: Source, protocol: str, paths: list[bytes], max_image_bytes: int) -> Source:
    """``source``, completed by the first rows of the first tar that has any, and of more tars as long as there may come
    what is not in those before.

    Raises:
        SourceError: no row can be read, or there is nothing to embed, or not what is asked for.
    """
    wanted = Wanted.of(source.image_column, source.text_column)
    keep = {*(source.storage.get(WANTED) or ())}
    reasons: list[str] = []
    own: list[dict[str, Any]] = []
    seen: set[str] = set()
    keys: dict[str, None] = {}  # the own columns, in order
    full = 0  # tars with a row
    images = captions = False
    local = b""  # the first tar with a row, if to look through it is to jump from member to member
    for path, (first, fault) in _firsts(protocol, paths, max_image_bytes, wanted):
        if not first:
            reasons.append(f"{display(path)}: {fault}")
            if not seen and len(reasons) == SAMPLE_TARS:
                break
        values = []
        for sample in first:
            here, caption = _parsed(sample)
            values.append(sample.own(here))
            keys.update(dict.fromkeys(values[-1]))
            images, captions = images or bool(sample.images), captions or caption
            seen |= {*map(display, sample.suffixes), *(f"json.{key}" for key in here)}
        own = own or values
        local = local or (path if first and protocol == LOCAL else b"")
        full += bool(first)
        if (images or source.images is False) and (captions or source.texts is False):
            if keep <= keys.keys() or full >= SAMPLE_TARS:
                break
    if not seen:
        raise SourceError(f"no row can be read of {source.url}: {'; '.join(reasons)}")
    for asked, column, found in (("image", source.image_column, images), ("text", source.text_column, captions)):
        if column and not found:
            raise SourceError(
                f"there is no {asked} column {column!r} in the first rows, which have: {listed(sorted(seen))}"
            )
    check_wanted(source, keys)
    if local and ((source.images is None and not images) or (source.texts is None and not captions)):
        more = _look_through(protocol, local, wanted)
        images, captions = images or more[0], captions or more[1]
    if source.texts and not captions and not any(_look_through(protocol, path, wanted)[1] for path in paths):
        raise SourceError(f"texts are asked for, and no row of {source.url} has a caption (NAME.txt, or in NAME.json)")
    images = images if source.images is None else source.images
    texts = captions if source.texts is None else source.texts
    if not images and not texts:
        raise SourceError(f"nothing that is wanted of them is in the first rows of {source.url}")
    return replace(source, images=images, texts=texts, columns=source.columns or _columns(source, own))


def _columns(source: Source, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The columns of the metadata, from the own ones of the first rows."""
    return with_wanted(source, infer(_wanted(source, row) for row in rows))


def _wanted(source: Source, own: dict[str, Any]) -> dict[str, Any]:
    """The own columns of a row that the metadata keep; its key names it, and stays."""
    return {name: value for name, value in own.items() if name == "key" or is_wanted(source, name)}


def _parsed(sample: Sample) -> tuple[dict[str, Any], bool]:
    """The values of a sample's JSON, and whether it has a caption; broken ones will be their rows' errors."""
    values: dict[str, Any] = {}
    with contextlib.suppress(BadInput):
        values = sample.values()
        return values, sample.caption(values) is not None
    return values, False


def _look_through(protocol: str, path: bytes, wanted: Wanted) -> tuple[bool, bool]:
    """Whether a tar has images and captions, up to where it breaks."""
    images = captions = False
    with contextlib.suppress(BrokenTar, OSError), opened(protocol, path) as (file, size):
        for sample in samples(archive_of(file, size), images=False, max_image_bytes=0, wanted=wanted):
            images, captions = images or bool(sample.images), captions or _parsed(sample)[1]
            if images and captions:
                break
    return images, captions


def _firsts(
    protocol: str, paths: list[bytes], max_image_bytes: int, wanted: Wanted
) -> Iterator[tuple[bytes, tuple[list[Sample], str]]]:
    """The first rows of each tar, some tars ahead."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="tars") as pool:
        waiting: deque[tuple[bytes, Future[tuple[list[Sample], str]]]] = deque()
        for path in paths:
            waiting.append((path, pool.submit(_first, protocol, path, max_image_bytes, wanted)))
            if len(waiting) > THREADS:
                path, first = waiting.popleft()
                yield path, first.result()
        while waiting:
            path, first = waiting.popleft()
            yield path, first.result()


def _first(protocol: str, path: bytes, max_image_bytes: int, wanted: Wanted) -> tuple[list[Sample], str]:
    """A tar's first rows, without their images' bytes, and why there are no more."""
    found: list[Sample] = []
    try:
        with opened(protocol, path) as (file, size):
            rows = samples(archive_of(file, size), images=False, max_image_bytes=max_image_bytes, wanted=wanted)
            for sample in islice(rows, SAMPLE_ROWS):
                found.append(sample)  # noqa: PERF402 - if the tar breaks, the rows before are kept
    except BrokenTar as error:
        return found, f"broken at byte {error.at} ({error.what})"
    except OSError as error:
        return found, reason(error)
    return found, "no rows"


def _lost(protocol: str, path: bytes, rows: int) -> str:
    """How many rows a broken tar loses, if img2dataset has written its count in a file beside it."""
    # There is no such file, or it cannot be read or understood.
    with contextlib.suppress(OSError, ClipError, ValueError, KeyError, TypeError):
        stats = path.rpartition(b".")[0] + b"_stats.json"
        count = orjson.loads(read_bytes(protocol, stats, TEXT_BYTES))["successes"]
        if isinstance(count, int) and count > rows:
            return f"{count - rows} of its {count} rows are lost"
    return "how many rows are lost cannot be told"
