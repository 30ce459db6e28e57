"""An API process on sockets of its parent: ``python -m clip_queue.stack.api_server FD,… GRACE LOG_LEVEL [NAME]``.

As uvicorn's ``--fd``, which keeps the socket open until the process ends: whoever connects while it finishes its
requests would wait at a door that nobody opens any more.
"""

from __future__ import annotations

import contextlib
import socket
import sys

import uvicorn
from prometheus_client import values

FAILED = 3  # uvicorn's own code of a start that failed


def main(fds: list[int], grace: int, log_level: str, name: str = "") -> None:
    """Serve until SIGTERM.

    Args:
        fds: of the sockets.
        grace: seconds that requests under way have after SIGTERM.
        name: of the files with what it counts, in a folder that no other process of this name has. By itself each
            process has its id there, and one that is started again leaves its files behind.
    """
    if name:
        values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]
    config = uvicorn.Config(
        "clip_queue.api.app:app",
        http="clip_queue.api.http_protocol:HttpProtocol",
        access_log=False,  # a query string can contain a key
        server_header=False,
        timeout_graceful_shutdown=grace,
        log_level=log_level,
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[socket.socket(fileno=fd) for fd in fds])
    if not server.started:
        sys.exit(FAILED)


if __name__ == "__main__":
    main([int(fd) for fd in sys.argv[1].split(",")], int(sys.argv[2]), *sys.argv[3:])
