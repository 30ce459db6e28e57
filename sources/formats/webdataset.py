"""Tars whose members NAME.jpg, NAME.txt and NAME.json make a row: one tar, a folder of them, a glob, or braces.

A sample is a sequence of members whose names are the same up to the first dot after the last slash (the folder belongs
to the name). Each member with an image's suffix (NAME.jpg, NAME.left.png) is a row. The caption is NAME.txt, or
``caption`` in NAME.json. The other values in NAME.json are the rows' columns, and ``key`` is NAME. The image column
chooses one image by its suffix (``left.png``), the text column another caption: the suffix of a text, or ``json.KEY``.
Nothing is unpacked to disk.

A tar is a shard, whatever the size of shards: only reading it tells how many rows it has.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import orjson

from clip_queue.shared.errors import BadImage, BadInput, ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import conform, infer, listed
from clip_queue.sources.discovery import containers, root
from clip_queue.sources.discovery import name as relative_name
from clip_queue.sources.formats.image_files import SUFFIXES, suffix
from clip_queue.sources.formats.samples import TEXT_BYTES, Sample, Wanted, is_plain, raw_name, samples
from clip_queue.sources.formats.tars import BrokenTar, Tar
from clip_queue.sources.registry import FORMATS
from clip_queue.sources.source import BrokenContainer, Piece, Planned, Row, Shard, Source, SourceError
from clip_queue.sources.storage import LOCAL, display, opened, read_bytes, reason, spellings, split

SPEC = FORMATS["webdataset"]
SAMPLE_ROWS = 100  # rows that tell what the tars hold
SAMPLE_TARS = 8  # tars that are tried until one has a row
THREADS = 8  # tars that are looked at at once


def plan_shards(source: Source, shard_size: int, settings: Settings) -> Planned:  # noqa: ARG001 - a tar is a shard
    """A shard for each tar. Where ``source`` does not say it, the first :data:`SAMPLE_ROWS` rows of the tars tell
    whether they hold images and captions, and those of the first tar the columns of their JSON.

    Raises:
        SourceError: there are no tars, none can be read, or they hold nothing to embed.
    """
    found = containers(source.url, SPEC.suffixes, SPEC.compressed)
    for path, _ in found:
        if path.lower().endswith(tuple(suffix.encode() for suffix in SPEC.compressed)):
            raise SourceError(f"{display(path)} is compressed: decompress it to a .tar")
    protocol, _ = split(source.url)
    done = _completed(source, protocol, [path for path, _ in found], settings.max_image_bytes)
    done = replace(done, storage={"root": root(source.url)})
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
                limit, wanted = settings.max_image_bytes, Wanted.of(source.image_column, source.text_column)
                tar = Tar(file, size)
                for sample in samples(tar, images=bool(source.images), max_image_bytes=limit, wanted=wanted):
                    for row in _rows(source, name, sample):
                        yield row
                        rows += 1
            continue
        except BrokenTar as error:
            total = "" if size < 0 else f" of {size}"
            cause = f"is broken at byte {error.at}{total} ({error.what}), after {rows} rows"
        except FileNotFoundError:
            cause = "does not exist any more"
        except PermissionError as error:
            if protocol != LOCAL:  # a login that ran out
                raise
            cause = f"cannot be read: {error.strerror}"
        message = f"{name} {cause}; {_lost(protocol, piece.path, rows)}"
        yield Row({**conform({}, source.columns), "image_path": name, "caption": None}, error=BrokenContainer(message))


def find_image(source: Source, image_path: str, settings: Settings) -> bytes:
    """The encoded image of the row that has this ``image_path``.

    Raises:
        BadImage: there is no such image.
        OSError: the tar cannot be read.
    """
    protocol, _ = split(source.url)
    limit = settings.max_image_bytes
    failure: OSError | None = None
    # The slash where the tar's path ends and the member's begins: most likely the one after .tar.
    cuts = [match.start() for match in re.finditer("/", image_path)]
    for cut in sorted(cuts, key=lambda cut: not image_path[:cut].lower().endswith(".tar")):
        tar, member = image_path[:cut], image_path[cut + 1 :]
        for name in [] if ".." in tar.split("/") else spellings(tar):
            path = os.fsencode(source.storage["root"]) + b"/" + name
            try:
                at, size = _index(protocol, path)[member]
                with opened(protocol, path) as (file, _size):
                    file.seek(at)
                    data: bytes = file.read(min(size, limit + 1))
                    return data
            except (KeyError, NotADirectoryError):
                continue
            except OSError as error:
                failure = failure or error
    raise failure or BadImage.because(f"{image_path} is not in {source.url}.")


def _rows(source: Source, tar: str, sample: Sample) -> Iterator[Row]:
    """A sample's rows, with the first of its errors."""
    errors: list[ClipError] = [sample.error] if sample.error else []
    if source.images and not sample.images:
        suffixes = ", ".join(f".{display(suffix)}" for suffix in sorted(sample.suffixes)[:8])
        errors.append(BadImage.because(f"The row has no image, only {suffixes}."))
    values: dict[str, Any] = {}
    caption = None
    try:
        values = sample.values()
    except BadInput as error:
        errors.append(error)
    try:
        caption = sample.caption(values)
    except BadInput as error:
        errors += [error] if source.texts else []
    own = conform(sample.own(values), source.columns)
    for image, data in (sample.images if source.images else {}).items() or [(next(iter(sample.images), None), None)]:
        columns = {**own, "image_path": f"{tar}/{display(image or sample.key)}", "caption": caption}
        yield Row(columns, data, caption, errors[0] if errors else None)


# Planning


def _completed(source: Source, protocol: str, paths: list[bytes], max_image_bytes: int) -> Source:
    """``source``, completed by the first rows of the first tar that has any, and of more tars as long as there may come
    what is not in those before.

    Raises:
        SourceError: no row can be read, or there is nothing to embed, or not what is asked for.
    """
    wanted = Wanted.of(source.image_column, source.text_column)
    reasons: list[str] = []
    own: list[dict[str, Any]] = []
    seen: set[str] = set()
    images = captions = False
    for path, (first, fault) in _firsts(protocol, paths, max_image_bytes, wanted):
        if not first:
            reasons.append(f"{display(path)}: {fault}")
            if not seen and len(reasons) == SAMPLE_TARS:
                break
        values = []
        for sample in first:
            here, caption = _parsed(sample)
            values.append(sample.own(here))
            images, captions = images or bool(sample.images), captions or caption
            seen |= {*map(display, sample.suffixes), *(f"json.{key}" for key in here)}
        own = own or values
        if (images or source.images is False) and (captions or source.texts is False):
            break
    if not seen:
        raise SourceError(f"no row can be read of {source.url}: {'; '.join(reasons)}")
    for asked, column, found in (("image", source.image_column, images), ("text", source.text_column, captions)):
        if column and not found:
            raise SourceError(
                f"there is no {asked} column {column!r} in the first rows, which have: {listed(sorted(seen))}"
            )
    images = images if source.images is None else source.images
    texts = captions if source.texts is None else source.texts
    if not images and not texts:
        raise SourceError(f"nothing that is wanted of them is in the first rows of {source.url}")
    return replace(source, images=images, texts=texts, columns=source.columns or infer(own))


def _parsed(sample: Sample) -> tuple[dict[str, Any], bool]:
    """The values of a sample's JSON, and whether it has a caption; broken ones will be their rows' errors."""
    values: dict[str, Any] = {}
    with contextlib.suppress(BadInput):
        values = sample.values()
        return values, sample.caption(values) is not None
    return values, False


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
            rows = samples(Tar(file, size), images=False, max_image_bytes=max_image_bytes, wanted=wanted)
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


@lru_cache(maxsize=16)
def _index(protocol: str, path: bytes) -> dict[str, tuple[int, int]]:
    """Start and size in bytes of a tar's images, by name as text: the first of each name, before the tar breaks."""
    found: dict[str, tuple[int, int]] = {}
    with opened(protocol, path) as (file, size), contextlib.suppress(BrokenTar):
        for member in Tar(file, size).members():
            if is_plain(member) and suffix(name := raw_name(member)) in SUFFIXES:
                found.setdefault(display(name), (member.offset_data, member.size))
    return found
