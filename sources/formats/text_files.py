"""Files of text, open for reading at any byte, as UTF-8 lines.

What is compressed, in another encoding, or one JSON array is made so in a temporary file, which goes with the block.

Each shard does this again from the file's beginning, so it is only done for files that are not too large.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple, cast

from clip_queue.sources.source import Source
from clip_queue.sources.storage import LOCAL, opened, split
from clip_queue.sources.unpacking import MAGIC_BYTES, BrokenStream, Unpacked, codec_of

BLOCK = 2**20  # bytes that are read at once
LIMIT = 2**30  # bytes of a temporary file
ELEMENT = 16 * 2**20  # characters of an element of a JSON array

UNREADABLE = "clip_queue_invalid"  # what is not of an encoding becomes a byte that is not UTF-8: its row will say so
codecs.register_error(UNREADABLE, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


class TextFile(NamedTuple):
    """An open file of text, with its ``end`` in bytes; ``size`` is that of the file as it is stored."""

    file: BinaryIO
    end: int
    size: int


@contextmanager
def open_text(source: Source, path: bytes) -> Iterator[TextFile]:
    """A file of a source. Raises :class:`OSError`, also for one that cannot be unpacked or is too large for that."""
    protocol, _ = split(source.url)
    with opened(protocol, path) as (raw, size):
        if size < 0:
            raise OSError("its store does not tell its size")
        file = raw if protocol == LOCAL else cast(BinaryIO, io.BufferedReader(raw, BLOCK))
        codec = codec_of(file.read(MAGIC_BYTES))
        file.seek(0)
        encoding = source.storage.get("encoding")
        if not codec and not encoding and source.format != "json":
            yield TextFile(file, size, size)
            return
        with TemporaryFile(prefix="clip-queue-") as lines:
            for block in _lines(file, codec, encoding, is_json=source.format == "json"):
                lines.write(block)
                if lines.tell() > LIMIT:
                    how = "unpacked" if codec else "as UTF-8 lines"
                    raise OSError(
                        f"it has more than {LIMIT >> 20} MiB {how}: make a plain file of UTF-8 lines of it first"
                    )
            yield TextFile(cast(BinaryIO, lines), lines.tell(), size)


def _lines(file: Any, codec: str | None, encoding: str | None, *, is_json: bool) -> Iterator[bytes]:
    stream = Unpacked(file, codec) if codec else file
    blocks: Iterable[bytes] = iter(lambda: stream.read(BLOCK), b"")
    if encoding:
        blocks = _recoded(blocks, encoding)
    if is_json:
        blocks = _elements(blocks)
    try:
        yield from blocks
    except BrokenStream as error:
        raise OSError(f"it cannot be unpacked: {error}") from error


def _recoded(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)(UNREADABLE)
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogateescape")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


def _elements(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The elements of a JSON array, each on a line; what is no array is given as it is: many call JSON Lines ``.json``.

    Raises:
        OSError: it is not JSON.
    """
    coming = iter(blocks)
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    held = ""
    while not held.strip():
        block = next(coming, None)
        if block is None:
            return
        held += decoder.decode(block)
    held = held.lstrip()
    if not held.startswith("["):
        yield held.encode("utf-8", "surrogateescape")
        for block in coming:
            yield decoder.decode(block).encode("utf-8", "surrogateescape")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")
        return
    parse, at, number, sign = json.JSONDecoder().raw_decode, 1, 0, ""
    while True:
        while at < len(held) and held[at] in " \t\r\n":
            at += 1
        rest = held[at : at + 1]
        try:
            if sign and rest:  # after an element
                if rest == "]":
                    return
                if rest != ",":
                    raise OSError(f"no JSON array: a comma is missing after its element {number}")
                at, sign = at + 1, ""
                continue
            if rest == "]" and not number:
                return
            if not rest:
                raise ValueError
            _, end = parse(held, at)
            if end == len(held) and rest not in '{["':  # a number may go on
                raise ValueError
        except (ValueError, RecursionError) as error:  # most likely for want of the rest of it
            block = next(coming, None)
            if block is None or len(held) - at > ELEMENT or isinstance(error, RecursionError):
                raise OSError(f"no JSON array: its element {number + 1} is cut off, broken or too large") from None
            held, at = held[at:] + decoder.decode(block), 0
            continue
        # A line break can only be white space: in a text it is escaped.
        yield held[at:end].replace("\n", " ").replace("\r", " ").encode("utf-8", "surrogateescape") + b"\n"
        number, at, sign = number + 1, end, ","
