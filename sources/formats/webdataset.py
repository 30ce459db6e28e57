"""Tars whose members NAME.jpg, NAME.txt and NAME.json make a row: one tar, a folder of them, a glob, or braces.

A row is members that follow each other and whose names are the same up to the first dot after the last slash (the
folder belongs to the name). The picture is the first member with a picture's suffix. The caption is NAME.txt, or
``caption`` in NAME.json; what else is in NAME.json are the row's columns, and ``key`` is NAME. Nothing is unpacked.

A tar is a shard, whatever the size of shards: how many rows it has shows only when it is read.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import orjson

from clip_queue.shared.errors import BadImage, BadInput, ClipError
from clip_queue.shared.settings import get_settings
from clip_queue.sources import discovery as listing
from clip_queue.sources import storage as files
from clip_queue.sources.columns import conform, infer
from clip_queue.sources.formats.folder import spellings
from clip_queue.sources.formats.image_files import SUFFIXES, suffix
from clip_queue.sources.formats.samples import PICTURE, TEXT_BYTES, Sample, is_plain, raw_name, samples
from clip_queue.sources.formats.tars import BrokenTar, Tar, opened
from clip_queue.sources.source import BrokenContainer, Piece, Planned, Row, ShardPlan, Source, SourceError

LOOK = 100  # rows looked at to learn what there is
LOOK_TARS = 8  # tars tried for them
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


def plan(source: Source, shard_size: int) -> Planned:  # noqa: ARG001 - a tar is a shard
    """A shard a tar. The first rows tell what there is, where ``source`` does not say: pictures, captions, and the
    columns of their JSON.

    Raises:
        SourceError: no tars, none that can be read, or nothing in them to embed.
    """
    found = listing.containers(source.url, (".tar",), COMPRESSED)
    for path, _ in found:
        if path.lower().endswith(tuple(suffix.encode() for suffix in COMPRESSED)):
            raise SourceError(f"{files.shown(path)} is compressed: decompress it to a .tar")
    protocol, _ = files.split(source.url)
    done = _completed(source, protocol, [path for path, _ in found[:LOOK_TARS]])
    done = replace(done, storage={"root": listing.root(source.url)})
    return done, (ShardPlan([Piece(path, size=size)], None) for path, size in found)


def read(source: Source, pieces: list[Piece]) -> Iterator[Row]:
    """The rows of tars. Where one breaks, the rows before are kept; the one cut in two and all that follow are one row
    that fails and says what is known about how many they are.

    Raises:
        SourceError: a tar is not the one that was planned.
        OSError: reading failed in a way that it need not the next time.
    """
    protocol, _ = files.split(source.url)
    for piece in pieces:
        name, rows = listing.name(source.storage["root"], piece.path), 0
        try:
            with opened(protocol, piece.path) as (file, size):
                if piece.size >= 0 and size not in (piece.size, -1):
                    raise SourceError(f"{name} has changed since it was planned: {piece.size} bytes then, {size} now")
                for sample in samples(Tar(file, size), pictures=bool(source.images)):
                    yield _row(source, name, sample)
                    rows += 1
            continue
        except BrokenTar as error:
            total = "" if size < 0 else f" of {size}"
            cause = f"is broken at byte {error.at}{total} ({error.what}), after {rows} rows"
        except FileNotFoundError:
            cause = "does not exist any more"
        except PermissionError as error:
            if protocol != files.LOCAL:  # a login that ran out
                raise
            cause = f"cannot be read: {error.strerror}"
        message = f"{name} {cause}; {_lost(protocol, piece.path, rows)}"
        yield Row({**conform({}, source.columns), "image_path": name, "caption": None}, error=BrokenContainer(message))


def find(source: Source, image_path: str) -> bytes:
    """The encoded picture of the row that has this ``image_path``.

    Raises:
        BadImage: there is no such picture.
        OSError: the tar cannot be read.
    """
    protocol, _ = files.split(source.url)
    limit = get_settings().max_image_bytes
    failure: OSError | None = None
    # Where the tar's path ends and the member's begins: most likely after .tar.
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


def _row(source: Source, tar: str, sample: Sample) -> Row:
    """A row, with the first of its errors."""
    errors: list[ClipError] = [sample.error] if sample.error else []
    if source.images and sample.picture is None:
        suffixes = ", ".join(f".{files.shown(suffix)}" for suffix in sorted(sample.suffixes)[:8])
        errors.append(BadImage.because(f"The row has no picture, only {suffixes}."))
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
    path = f"{tar}/{files.shown(sample.picture or sample.key)}"
    columns = {**conform(sample.own(values), source.columns), "image_path": path, "caption": caption}
    return Row(columns, sample.data.get(PICTURE), caption, errors[0] if errors else None)


# What there is


def _completed(source: Source, protocol: str, paths: list[bytes]) -> Source:
    """``source`` with what the first rows tell."""
    reasons = []
    for path in paths:
        first, reason = _first(protocol, path)
        if first:
            break
        reasons.append(f"{files.shown(path)}: {reason}")
    else:
        raise SourceError(f"no row can be read of {source.url}: {'; '.join(reasons)}")
    own = []
    captions = 0
    for sample in first:
        values: dict[str, Any] = {}
        with contextlib.suppress(BadInput):  # it will be its row's
            values = sample.values()
            captions += sample.caption(values) is not None
        own.append(sample.own(values))
    images = any(sample.picture is not None for sample in first) if source.images is None else source.images
    texts = captions > 0 if source.texts is None else source.texts
    if not images and not texts:
        raise SourceError(f"nothing that is wanted of them is in the first rows of {files.shown(path)}")
    return replace(source, images=images, texts=texts, columns=source.columns or infer(own))


def _first(protocol: str, path: bytes) -> tuple[list[Sample], str]:
    """A tar's first rows, without their pictures, and why there are no more."""
    found: list[Sample] = []
    try:
        with opened(protocol, path) as (file, size):
            for sample in islice(samples(Tar(file, size), pictures=False), LOOK):
                found.append(sample)  # noqa: PERF402 - those before it breaks are wanted, too
    except BrokenTar as error:
        return found, f"broken at byte {error.at} ({error.what})"
    except OSError as error:
        return found, listing.reason(error)
    return found, "no rows"


def _lost(protocol: str, path: bytes, rows: int) -> str:
    """How many rows a broken tar costs, if img2dataset's count lies beside it."""
    with contextlib.suppress(Exception):  # there is none, or it is not understood
        stats = path.rpartition(b".")[0] + b"_stats.json"
        count = orjson.loads(files.read_bytes(protocol, stats, TEXT_BYTES))["successes"]
        if isinstance(count, int) and count > rows:
            return f"{count - rows} of its {count} rows are lost"
    return "how many rows are lost cannot be told"


@lru_cache(maxsize=16)
def _index(protocol: str, path: bytes) -> dict[str, tuple[int, int]]:
    """Where a tar's pictures are, by name as it is shown: the first of each, up to where it breaks."""
    found: dict[str, tuple[int, int]] = {}
    with opened(protocol, path) as (file, size), contextlib.suppress(BrokenTar):
        for member in Tar(file, size).members():
            if is_plain(member) and suffix(name := raw_name(member)) in SUFFIXES:
                found.setdefault(files.shown(name), (member.offset_data, member.size))
    return found
