"""A helper process: it decodes images one after another until its standard input ends, and knows nothing else.

A request is :data:`REQUEST` and the encoded image, a reply is :data:`REPLY` and RGB pixels or the reason of a refusal.
No pickles: what comes from a process that decodes anybody's data is not to be trusted. The command line has the most
bytes of memory that it may take.
"""

from __future__ import annotations

import os
import signal
import struct
import sys

from PIL import Image

from clip_queue.shared.errors import BadImage
from clip_queue.worker.inference.decode import TOO_LARGE, to_rgb
from clip_queue.worker.inference.image_limits import Limits, examine

REQUEST = struct.Struct("!QQQQId")  # bytes that follow; limits of bytes, pixels and work; draft; seconds
READY = b"\x01"  # what the process writes first
REPLY = struct.Struct("!IIQ")  # width and height, or 0 and 0; bytes that follow


def main() -> None:
    try:
        serve()
    except BrokenPipeError:
        os._exit(0)  # the worker has ended, and Python would complain of what it cannot flush


def serve() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the worker
    Image.init()  # a codec that finds no memory to be loaded in would be taken for one that does not exist
    _bound(int(sys.argv[1]))
    replies.write(READY)
    replies.flush()
    requests = sys.stdin.buffer
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        size, most_bytes, most_pixels, most_work, draft, seconds = REQUEST.unpack(head)
        # The worker ends what overstays. This is for when it has ended itself: the kernel needs no thread of Python's.
        signal.setitimer(signal.ITIMER_REAL, seconds + 1)
        width, height, body = _decode(requests.read(size), Limits(most_bytes, most_pixels, most_work), draft)
        replies.write(REPLY.pack(width, height, len(body)))
        replies.write(body)
        replies.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)


def _decode(data: bytes, limits: Limits, draft: int) -> tuple[int, int, bytes]:
    """Width, height and RGB pixels; or 0, 0 and a message."""
    Image.MAX_IMAGE_PIXELS = limits.pixels
    try:
        image = to_rgb(examine(data, limits), limits, draft)
        return (*image.size, image.tobytes())
    except BadImage as error:
        return 0, 0, error.message.encode()
    except MemoryError:
        return 0, 0, BadImage.because(TOO_LARGE).message.encode()


def _bound(memory: int) -> None:
    os.nice(5)  # other images' threads go before
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
