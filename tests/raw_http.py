"""HTTP as bytes on a socket, for what no client library sends."""

from __future__ import annotations

import contextlib
import socket
from typing import Self

CLOSED = (ConnectionError, BrokenPipeError)


class Connection:
    """A connection to a server on this machine.

    Args:
        receive_buffer: bytes that the kernel holds for this side, where that matters.
    """

    def __init__(self, port: int, *, timeout: float = 30.0, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect(("127.0.0.1", port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send all of it; False if the server has closed the connection before the end."""
        try:
            self.socket.sendall(data)
        except CLOSED:
            return False
        return True

    def read(self, until: bytes | None = None) -> bytes:
        """What the server sends until it closes, or until ``until`` is in it. Raises TimeoutError if neither comes."""
        got = b""
        with contextlib.suppress(*CLOSED):
            while (until is None or until not in got) and (chunk := self.socket.recv(65536)):
                got += chunk
        return got

    @property
    def closed(self) -> bool:
        """Whether the server has closed it, and sent nothing that is unread."""
        self.socket.setblocking(False)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except CLOSED:
            return True
        finally:
            self.socket.setblocking(True)


def exchange(port: int, *parts: bytes, timeout: float = 30.0) -> bytes:
    """Everything that the server answers to ``parts``, until it closes the connection."""
    with Connection(port, timeout=timeout) as connection:
        for part in parts:
            if not connection.send(part):
                break
        return connection.read()


def request(body: bytes = b"", *headers: bytes, line: bytes = b"POST /clip/embed_text HTTP/1.1") -> bytes:
    """A request whose body has its length announced."""
    return b"\r\n".join([line, b"Host: x", b"Content-Length: %d" % len(body), *headers, b"", body])


def status(answer: bytes) -> int:
    """The status of the first answer; 0: there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
