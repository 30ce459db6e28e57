"""A body that was sent as gzip: one stream after another, decompressed within a limit."""

from __future__ import annotations

import zlib

from clip_queue.shared.errors import BadInput

MOST_STREAMS = 4096  # a file that was compressed in blocks of 64 KiB has one for each
_AT_ONCE = 64 * 1024  # bytes that are decompressed at once: what is left of them is copied for each stream


def gunzip(body: bytes | bytearray, limit: int) -> bytes:
    """The content of gzip streams, after which there may be zeros; no more than ``limit`` bytes and one.

    Raises:
        BadInput: they are none, are cut off, are too many, or something else follows.
    """
    out = bytearray()
    stream = None
    streams, at, rest = 0, 0, b""
    while len(out) <= limit:
        if not rest:
            rest = bytes(body[at : at + _AT_ONCE])
            at += len(rest)
        if streams and (stream is None or stream.eof):
            rest = rest.lstrip(b"\0")
            if not rest and at < len(body):
                continue
        if not rest:
            break
        if stream is None or stream.eof:
            streams += 1
            stream = zlib.decompressobj(wbits=31)
        try:
            out += stream.decompress(rest, limit + 1 - len(out))
        except zlib.error:
            raise _wrong() from None
        rest = stream.unused_data or stream.unconsumed_tail
        if streams > MOST_STREAMS:
            raise _wrong()
    if len(out) <= limit and not (stream and stream.eof):
        raise _wrong()
    return bytes(out)


def _wrong() -> BadInput:
    return BadInput("The body is not one whole gzip stream, as its Content-Encoding says, nor several.")
