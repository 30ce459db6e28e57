"""A folder of pictures with all folders below it, here or where fsspec reaches; a caption is ``NAME.txt`` beside.

The order and what is skipped: :mod:`clip_queue.sources.formats.image_files`. A folder that cannot be listed is a row that fails and says
so. A single picture is a source too.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.settings import get_settings
from clip_queue.sources import storage as files
from clip_queue.sources.discovery import reason
from clip_queue.sources.formats.image_files import SUFFIXES, WANTED, suffix, walk
from clip_queue.sources.source import BrokenContainer, Piece, Planned, Row, ShardPlan, Source, SourceError

LOOK = 10_000  # pictures looked at for a caption before the source counts as one without
CAPTION_BYTES = 64 * 2**10
CAPTION_THREADS = 16  # captions fetched at once from a remote store

# A piece's note: how its caption's name ends (a whole name need not be text), nothing, or of a folder why it is here.
UNREADABLE = "cannot be listed: "


def plan(source: Source, shard_size: int) -> Planned:
    """Shards of ``shard_size`` pictures.

    Captions are embedded if one is found before :data:`LOOK` pictures were seen, unless ``texts`` says; with ``images``
    False nothing else is, and a picture without one is a row without anything.

    Raises:
        SourceError: no folder, no picture, or nothing of them to embed.
    """
    protocol, root = _root(source)
    found = (
        Piece(path, note=UNREADABLE + fault if fault else caption)
        for path, caption, fault in walk(source.url, protocol, root)
    )
    head: list[Piece] = []
    pictures = captions = 0
    for piece in found:
        head.append(piece)
        if not piece.note.startswith(UNREADABLE):
            pictures += 1
            captions += bool(piece.note)
            if captions or pictures >= LOOK or source.texts is not None:
                break
    if not pictures:
        lost = f"; {len(head)} of its folders cannot be listed" if head else ""
        raise SourceError(f"{source.url} holds no picture ({WANTED}){lost}")
    images = source.images is not False
    texts = captions > 0 if source.texts is None else source.texts
    if not images and not texts:
        raise SourceError(f"{source.url}: images are not wanted, and captions (NAME.txt) are not wanted or not there")
    return replace(source, images=images, texts=texts, columns={}, storage={}), _shards(chain(head, found), shard_size)


def read(source: Source, pieces: list[Piece]) -> Iterator[Row]:
    """A row a picture, to be loaded when its turn comes; captions are read here, from a remote store several at once.

    A caption that cannot be read is its row's error if texts are embedded, and else just missing.

    Raises:
        SourceError: the captions' store is away.
    """
    protocol, root = _root(source)
    limit = get_settings().max_image_bytes
    for piece, caption in zip(pieces, _captions(protocol, pieces), strict=True):
        columns: dict[str, Any] = {"image_path": files.shown(_relative(root, piece.path)), "caption": None}
        if piece.note.startswith(UNREADABLE):
            message = f"folder {files.shown(piece.path)} {piece.note}; how many pictures it holds is not known"
            yield Row(columns, error=BrokenContainer(message))
            continue
        row = Row(columns, files.reader(protocol, piece.path, limit) if source.images else None)
        if isinstance(caption, ClipError):
            row.error = caption if source.texts else None
        else:
            row.text = columns["caption"] = caption
        yield row


def find(source: Source, image_path: str) -> bytes:
    """The encoded picture of the row that has this ``image_path``.

    Raises:
        BadInput: the path leads out of the source.
        OSError: it cannot be read.
    """
    if ".." in image_path.split("/"):
        raise BadInput(f"{image_path} is not in {source.url}")
    protocol, root = _root(source)
    paths = [root + b"/" + name for name in spellings(image_path)]
    if image_path == files.shown(_relative(root, root)) and suffix(root) in SUFFIXES:
        paths.append(root)  # the source is this picture
    limit = get_settings().max_image_bytes
    for path in paths[:-1]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return files.read_bytes(protocol, path, limit)
    return files.read_bytes(protocol, paths[-1], limit)


def spellings(text: str) -> list[bytes]:
    """The names that :func:`clip_queue.sources.storage.shown` shows as ``text``: as it stands, and with what looks escaped as bytes."""
    name = text.encode()
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), name)
    return [name] if raw == name else [name, raw]


def _root(source: Source) -> tuple[str, bytes]:
    """Protocol and path, without a slash at its end: this machine's root is empty."""
    protocol, path = files.split(source.url)
    return protocol, os.fsencode(path).rstrip(b"/")


def _relative(root: bytes, path: bytes) -> bytes:
    """A path below the source's; of a source that is one picture, its name."""
    return path[len(root) + 1 :] or path.rpartition(b"/")[2]


def _shards(pieces: Iterator[Piece], size: int) -> Iterator[ShardPlan]:
    while shard := list(islice(pieces, size)):
        yield ShardPlan(shard, len(shard))


# Captions


def _captions(protocol: str, pieces: list[Piece]) -> Iterator[str | ClipError | None]:
    """Each piece's caption, in order."""
    caption = partial(_caption, protocol)
    if protocol == files.LOCAL or not any(piece.note for piece in pieces):
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
    """A picture's caption; None where there is none, or nothing in it; an error if it cannot be had."""
    if not piece.note.startswith("."):
        return None
    path = piece.path.rpartition(b".")[0] + piece.note.encode()
    try:
        data = files.read_bytes(protocol, path, CAPTION_BYTES)
        if len(data) > CAPTION_BYTES:
            return BadInput(f"caption {files.shown(path)} is larger than {CAPTION_BYTES} bytes")
        return data.decode("utf-8-sig").strip() or None
    except UnicodeDecodeError:
        return BadInput(f"caption {files.shown(path)} is not UTF-8")
    except SourceError:
        raise
    except Exception as error:  # whatever the store's client raises
        return BadInput(f"caption {files.shown(path)} cannot be read: {reason(error)}")
