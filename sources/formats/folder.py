"""A folder of images with all folders below it, on this machine or in a store; a caption is ``NAME.txt`` beside.

:mod:`clip_queue.sources.formats.image_files` gives the order, and the names that are skipped. A folder that cannot be
listed is a row that fails and says so. A single image is a source too.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources.discovery import root as pattern_root
from clip_queue.sources.formats.image_files import SUFFIXES, WANTED, is_pattern, suffix, walk
from clip_queue.sources.formats.table import of_halves
from clip_queue.sources.left_out import PASSED, Passed
from clip_queue.sources.source import (
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
from clip_queue.sources.storage import LOCAL, display, read_bytes, reader, reason, spellings, split

SAMPLE_ROWS = 10_000  # images that are looked at for a caption before the source counts as one without
EMPTY_CAPTIONS = 1_000  # captions that are empty before the source counts as one with captions
CAPTION_BYTES = 64 * 2**10  # the longest caption
CAPTION_THREADS = 16  # captions that are read at once from a remote store

# A piece's note is how its caption's name ends (a whole name need not be text), or nothing. A folder that could not be
# listed is a piece as well: its note is this and the reason.
UNREADABLE = "cannot be listed: "


def plan_shards(
    source: Source,
    shard_size: int,
    settings: Settings,  # noqa: ARG001 - every format has it
    *,
    sample_rows: int = SAMPLE_ROWS,
) -> Planned:
    """Shards of ``shard_size`` images.

    Captions are embedded unless ``texts`` is False, if any image has one; if none of the first ``sample_rows`` images
    has one, the folder is listed a second time. If ``images`` is False, captions alone are embedded, and an image
    without a caption is an empty row.

    Raises:
        SourceError: there is no such folder, it holds no image, or nothing of what is asked for.
    """
    if source.image_column or source.text_column:
        raise SourceError("a folder of images has no columns: its captions are the files NAME.txt beside the images")
    protocol, path = split(source.url)
    if is_pattern(protocol, os.fsencode(path)):
        source = replace(source, storage={"root": pattern_root(source.url)})
    passed: Passed = {}
    top = os.fsencode(path).rstrip(b"/")
    found = (
        Piece(path, note=UNREADABLE + fault if fault else caption)
        for path, caption, fault in walk(source.url, protocol, top, passed)
    )
    head: list[Piece] = []
    says = partial(_says, protocol, [])
    image_count = caption_count = 0
    for piece in found:
        head.append(piece)
        if not piece.note.startswith(UNREADABLE):
            image_count += 1
            caption_count += bool(piece.note) and says(piece)
            if caption_count or image_count >= sample_rows or source.texts is False:
                break
    if not image_count:
        lost = f"; {len(head)} of its folders cannot be listed" if head else ""
        raise SourceError(f"{source.shown} holds no image ({WANTED}){lost}")
    has_captions = caption_count > 0
    if not has_captions and source.texts is not False and image_count >= sample_rows:
        # They may begin later. A second listing tells, because what this one has listed must not stay in memory.
        again = walk(source.url, protocol, top)
        has_captions = any(says(Piece(path, note=caption)) for path, caption, _ in again if caption)
    if source.texts and not has_captions:
        raise SourceError(
            f"{source.shown}: texts are asked for, and no image has a caption (NAME.txt beside it, not empty)"
        )
    texts, images = has_captions and source.texts is not False, source.images is not False
    if not images and not texts:
        raise SourceError(f"{source.shown}: images are not wanted, and captions (NAME.txt) are not wanted or not there")
    done = replace(source, images=images, texts=texts, columns={}, storage={**source.storage, PASSED: passed})
    return done, _shards(chain(head, found), shard_size)


def read(source: Source, pieces: list[Piece], settings: Settings) -> Iterator[Row]:
    """A row for each image. An image is loaded when its turn comes; a store's captions are read ahead, in threads.

    A caption that cannot be read is a fault of its row if texts are embedded; if not, the row has no caption.

    Raises:
        SourceError: the captions' store is away.
    """
    protocol, root = _root(source)
    for piece, caption in zip(pieces, _captions(protocol, pieces), strict=True):
        place = Place(display(_relative(root, piece.path)))
        columns: dict[str, Any] = {"image_path": place.file, "caption": None}
        if piece.note.startswith(UNREADABLE):
            message = f"folder {display(piece.path)} {piece.note}; how many images it holds is not known"
            yield Row(columns, error=BrokenContainer(message), place=place)
            continue
        row = Row(columns, place=place)
        if source.images:
            row.image = reader(protocol, piece.path, settings.max_image_bytes)
        if isinstance(caption, ClipError):
            if source.texts:
                row.faults[TEXT_HALF] = caption
        else:
            row.text = columns["caption"] = caption
        if not source.images:
            row.left_out += (IMAGES,)
        if not source.texts and caption is not None:
            row.left_out += (TEXTS,)
        yield of_halves(row, source)


def find_image(
    source: Source,
    image_path: str,
    settings: Settings,
    place: Place | None = None,  # noqa: ARG001 - an image's path is unique here
) -> bytes:
    """The encoded image of the row that has this ``image_path``.

    Raises:
        BadInput: the path leads out of the source.
        OSError: the image cannot be read.
    """
    if ".." in image_path.split("/"):
        raise BadInput(f"{image_path} is not in {source.shown}")
    protocol, root = _root(source)
    paths = [root + b"/" + name for name in spellings(image_path)]
    if image_path == display(_relative(root, root)) and suffix(root) in SUFFIXES:
        paths.append(root)  # the source is this image
    for path in paths[:-1]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return read_bytes(protocol, path, settings.max_image_bytes)
    return read_bytes(protocol, paths[-1], settings.max_image_bytes)


def _root(source: Source) -> tuple[str, bytes]:
    """Protocol and path, without a slash at its end: the path of this machine's root is empty. Of a pattern it is
    the folder that names are relative to."""
    protocol, path = split(source.url)
    return protocol, os.fsencode(source.storage.get("root", path)).rstrip(b"/")


def _relative(root: bytes, path: bytes) -> bytes:
    """A path below the source's; its name if the source is this image."""
    return path[len(root) + 1 :] or path.rpartition(b"/")[2]


def _shards(pieces: Iterator[Piece], size: int) -> Iterator[Shard]:
    while shard := list(islice(pieces, size)):
        yield Shard(shard, len(shard))


# Captions


def _says(protocol: str, empty: list[Piece], image: Piece) -> bool:
    """Whether an image has a caption that is not empty; after :data:`EMPTY_CAPTIONS` that are, no more are read."""
    if len(empty) < EMPTY_CAPTIONS and _caption(protocol, image) is None:
        empty.append(image)
        return False
    return True


def _captions(protocol: str, pieces: list[Piece]) -> Iterator[str | ClipError | None]:
    """Each piece's caption, in order."""
    caption = partial(_caption, protocol)
    if protocol == LOCAL or not any(piece.note for piece in pieces):
        yield from map(caption, pieces)
        return
    pool = ThreadPoolExecutor(CAPTION_THREADS, thread_name_prefix="captions")
    try:
        waiting: deque[Future[str | ClipError | None]] = deque()
        for piece in pieces:
            waiting.append(pool.submit(caption, piece))
            if len(waiting) > 4 * CAPTION_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _caption(protocol: str, piece: Piece) -> str | ClipError | None:
    """An image's caption; None if it has none or an empty one; an error if it cannot be read."""
    if not piece.note.startswith("."):
        return None
    path = piece.path.rpartition(b".")[0] + piece.note.encode()
    try:
        data = read_bytes(protocol, path, CAPTION_BYTES)
        if len(data) > CAPTION_BYTES:
            return BadInput(f"caption {display(path)} is larger than {CAPTION_BYTES} bytes")
        return data.decode("utf-8-sig").strip() or None
    except UnicodeDecodeError:
        return BadInput(f"caption {display(path)} is not UTF-8")
    except OSError as error:
        return BadInput(f"caption {display(path)} cannot be read: {reason(error)}")
