"""uvicorn's HTTP protocol, as it should be: ``uvicorn --http clip_queue.api.http_protocol:HttpProtocol``.

A server may ignore an offer to upgrade a connection, and then answers as if it were not there (RFC 9110, 7.8). Clients
that offer HTTP/2 (`Upgrade: h2c`) with each first request are Java's HttpClient, and so Spring, and ``curl --http2``.
uvicorn's parser takes the bytes after such an offer for another protocol, and the body is lost.
"""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER = (b"upgrade", b"http2-settings", b"connection")


class HttpProtocol(HttpToolsProtocol):
    """Parses a request that offers an upgrade again, without the offer. Only a WebSocket is upgraded to."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._ignores_offer:
                self._parse_without_offer(data[upgrade.args[0] :])
            elif self._should_upgrade():
                self.handle_websocket_upgrade()
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def on_headers_complete(self) -> None:
        if not self._ignores_offer:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._ignores_offer:
            super().on_message_complete()

    @property
    def _ignores_offer(self) -> bool:
        # CONNECT is an upgrade without headers that offer one.
        return self.parser.should_upgrade() and not self._should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _parse_without_offer(self, rest: bytes) -> None:
        head = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
        head += [b"%s: %s" % header for header in self.headers if header[0] not in _OFFER]
        if not self.parser.should_keep_alive():
            head.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*head, b"", rest]))
