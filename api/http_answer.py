"""How a request's answer goes to its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    from clip_queue.api.http_protocol import HttpProtocol


class Answer:
    """Where a request's answer goes: the connection, but that it is not closed while the request's body still comes.

    The head goes with what follows it at once, most often the whole body: two packets are two calls of the system, and
    wake the client twice.
    """

    def __init__(self, protocol: HttpProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol, self._cycle = protocol, cycle
        self._begun = False
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._cycle.response_started and not self._begun:
            self._begun, self._head = True, data
            self._protocol.loop.call_soon(self.flush)
        elif self._head:
            head, self._head = self._head, b""
            self._protocol.transport.writelines((head, data))
        else:
            self._protocol.transport.write(data)

    def flush(self) -> None:
        """Send the head, if nothing has followed it."""
        if self._head:
            self.write(b"")

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self.flush()
        self._protocol.close_after_answer()
