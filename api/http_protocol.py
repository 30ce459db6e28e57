"""uvicorn's HTTP protocol, as it should be: ``uvicorn --http clip_queue.api.http_protocol:HttpProtocol``.

uvicorn's parser, httptools, bounds neither headers nor time. Here a connection is bounded in what it may cost before
the application sees a request, and after it has answered one: size, number and time of headers, requests sent ahead,
the framing of a chunked body, a body that nobody reads any more, an answer that the client does not take. The time in
which the body that the application reads must come is bounded by :mod:`clip_queue.api.body`.

No connection is upgraded. A server may ignore an offer to do so, and then answers as if it were not there (RFC 9110,
7.8). Clients that offer HTTP/2 (`Upgrade: h2c`) with each first request are Java's HttpClient, and so Spring, and
``curl --http2``. httptools takes the bytes after such an offer for another protocol, and the body is lost.
"""

from __future__ import annotations

import asyncio
from asyncio.events import TimerHandle
from enum import Enum
from typing import Any, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from clip_queue.api import request_log
from clip_queue.api.connections import SPARE, Limits, busy, crowded, evict
from clip_queue.api.http_answer import Answer

_OFFER = (b"upgrade", b"http2-settings", b"connection")
_HEALTH = (b"/healthz", b"/readiness", b"/.well-known/live", b"/.well-known/ready")

LINGER_BYTES = 2**20  # and as much as a body may have: what is read of a body after its answer and its limit


class Part(Enum):
    """What a connection receives."""

    NOTHING = "between two requests"
    HEAD = "request line and headers"
    BODY = "the body"


class _Refused(Exception):
    """Ends the parsing of a request that is answered by the protocol, and the connection."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class HttpProtocol(HttpToolsProtocol):
    """One connection. Times are those of the event loop."""

    url = b""
    limits: Limits | None = None  # for all connections; None: those of the settings

    _part = Part.NOTHING
    _since = 0.0  # when the head began that is being received, or the connection; or since when a body is passed over
    _begun = False  # whether a request line has begun
    _head_bytes = 0  # of the request line and of the headers, or of the trailers
    _received = 0  # bytes since the head began; of a head that began within a packet, those after the packet
    _framed = 0  # bytes of the body as it came, and
    _content = 0  # without its framing
    _announced = 0  # bytes that the body has by its request's headers
    _refusal: _Refused | None = None
    _deaf = False  # nothing more is read: what came was no HTTP, and an earlier request is still being answered
    _running: RequestResponseCycle | None = None  # the request that is being answered
    _ending = False  # the connection is closed once the body has come whose answer was sent
    _timer: TimerHandle | None = None
    _untaken = 0  # bytes of answers that were still to be sent at
    _untaken_since = 0.0
    served = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        type(self).limits = self.limits or Limits.of_settings()
        self._bounds = cast(Limits, self.limits)
        self._since = self.loop.time()
        if len(self.connections) > self._bounds.connections:
            evict(self.connections, self)
            if len(self.connections) > self._bounds.connections + SPARE:
                transport.abort()
                return
        self._timer = self.loop.call_later(self._bounds.interval, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        self.pipeline.clear()
        if self._running:  # where requests were sent ahead, uvicorn tells only the last one
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    # What comes in

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data and not self._deaf and not self.transport.is_closing():
            data = self._feed(data)
        if self._deaf and self._part is Part.BODY:
            self._framed += len(data)
            if self._framed > 2 * self._bounds.body_bytes + LINGER_BYTES:
                self.transport.close()

    def _feed(self, data: bytes) -> bytes:
        """Parse ``data``; returns what must be parsed again, since it came after an offer to upgrade."""
        if self._part is Part.NOTHING:
            self._part, self._since, self._begun, self._received = Part.HEAD, self.loop.time(), False, 0
        elif self._part is Part.BODY:
            self._framed += len(data)
        self._received += len(data)
        try:
            self.parser.feed_data(data)
            self._check_sizes()
        except httptools.HttpParserUpgrade as upgrade:
            if self._ignores_offer:
                return self._without_offer(data[upgrade.args[0] :])
        except _Refused as refused:
            self.refuse(refused)
        except httptools.HttpParserError:
            self.refuse(self._refusal or _Refused(400, "no_http", "Invalid HTTP request received."))
        return b""

    def _check_sizes(self) -> None:
        """Raise for what no callback of the parser has seen yet, and for what is passed over."""
        if self._part is Part.HEAD and self._received > self._bounds.header_bytes:
            raise self._large_head()
        if self._part is not Part.BODY:
            return
        if self._framed > self._bounds.framing(self._content):
            raise _Refused(413, "too_large", "The body has more framing (chunk sizes, extensions) than content.")
        if self.cycle.response_complete and self._framed > self._bounds.body_bytes:
            # Closed now, the connection would be reset by what is still on its way, and the answer might be lost.
            self._deaf = True
            if not self.transport.can_write_eof():  # TLS cannot
                self.transport.close()
            elif not self._ending:
                self.transport.write_eof()

    def _large_head(self) -> _Refused:
        if 2 * len(self.url) > self._bounds.header_bytes:
            return _Refused(414, "too_large", f"The URL is longer than {self._bounds.header_bytes} bytes.")
        return _Refused(
            431,
            "too_large",
            f"The headers are more than {self._bounds.headers}, or more than {self._bounds.header_bytes} bytes "
            "(setting max_header_bytes).",
        )

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._part is not Part.HEAD:  # sent ahead, in one packet with the end of the request before it
            self._part, self._since, self._received = Part.HEAD, self.loop.time(), 0
        self._begun = True
        self._head_bytes = self._framed = self._content = self._announced = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        self._head_bytes = len(self.url)
        if self._head_bytes > self._bounds.header_bytes:
            self._refusal = self._large_head()
            raise self._refusal

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        trailer = self._part is Part.BODY
        many = not trailer and len(self.headers) >= self._bounds.headers
        if many or self._head_bytes > self._bounds.header_bytes:
            self._refusal = self._large_head()
            raise self._refusal
        if trailer:
            return  # the application has its headers already
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif name == b"content-length":
            self._announced = int(value)
        elif name == b"transfer-encoding" and value.strip(b" \t").lower() != b"chunked":
            # The parser would take `gzip, chunked` for chunks of what the body says.
            self._refusal = _Refused(400, "no_http", "Transfer-Encoding may only be chunked.")
            raise self._refusal
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._ignores_offer:
            return
        if self.parser.should_upgrade():  # CONNECT, after which httptools takes no HTTP
            self._refusal = _Refused(400, "http", "CONNECT is not supported: this is no proxy.")
            raise self._refusal
        if len(self.pipeline) >= self._bounds.ahead:
            self._refusal = _Refused(400, "too_many", "Too many requests were sent ahead.")
            raise self._refusal
        if len(self.connections) > self._bounds.connections and self.url.partition(b"?")[0] not in _HEALTH:
            crowded(self._bounds.connections)
            self.app = busy
        else:
            self.app = self.config.loaded_app
        super().on_headers_complete()  # raises for some URLs, as `http://x:/`, which are refused as a head is
        self._part, self._head_bytes = Part.BODY, 0
        self.cycle.transport = cast(asyncio.Transport, Answer(self, self.cycle))
        self._bound_body(self._announced)

    def on_body(self, body: bytes) -> None:
        self._content += len(body)
        self._bound_body(self._content)
        super().on_body(body)

    def _bound_body(self, size: int) -> None:
        """A body over the limit is not read to its end; then its answer says that the connection is closed."""
        if size > self._bounds.body_bytes:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        if not self._ignores_offer:
            super().on_message_complete()
            self._part = Part.NOTHING
            if self._ending:
                self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        assert self._running
        cast(Answer, self._running.transport).flush()  # before the connection may be closed: a HEAD has no body
        self.served = True
        if self._part is Part.BODY:
            self._since = self.loop.time()  # the rest of the body is passed over, so that the client reads the answer
        if not self._ending:
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.flow.resume_reading()

    def close_after_answer(self) -> None:
        """Close the connection; if a body still comes whose answer was sent, when it has come or takes too long.

        Closed now, the connection would be reset by what is on its way, and the client would never read the answer.
        """
        if self._part is not Part.BODY or self._answering or self.transport.is_closing():
            self.transport.close()
        elif not self._ending:
            self._ending = True
            if self.transport.can_write_eof():
                self.transport.write_eof()

    # Offers to upgrade

    def _should_upgrade(self) -> bool:
        return False  # no route speaks WebSocket

    @property
    def _ignores_offer(self) -> bool:
        # CONNECT is an upgrade without headers that offer one.
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _without_offer(self, rest: bytes) -> bytes:
        """The request whose head has just been parsed, without the offer, and what came after it."""
        head = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
        head += [b"%s: %s" % header for header in self.headers if header[0] not in _OFFER]
        if not self.parser.should_keep_alive():
            head.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self._part = Part.NOTHING
        return b"\r\n".join([*head, b"", rest])

    # Time

    @property
    def _answering(self) -> RequestResponseCycle | None:
        """The last request whose headers are complete, if it is not answered yet."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle if cycle and not cycle.response_complete else None

    @property
    def idle(self) -> bool:
        """Whether no request is being answered, and no body is being received."""
        return self._ending or (self._part is not Part.BODY and self._answering is None)

    @property
    def since(self) -> float:
        """Since when it is idle."""
        return self._since

    def _look(self) -> None:
        """Look at the times, a few times in each of the limits: so a request that comes in time sets no timer."""
        now = self.loop.time()
        if self._stalls(now):
            self.transport.abort()
            return
        if self._answering or self.transport.is_closing():
            if self._part is Part.HEAD:
                self._since = now  # the head of a request sent ahead is not judged
        elif self._part is Part.HEAD or not self.served:
            if now - self._since > self._bounds.header_time:
                self._head_is_late()
        elif self._part is Part.BODY and now - self._since > self._bounds.linger:
            self.transport.close()
        self._timer = self.loop.call_later(self._bounds.interval, self._look)

    def _head_is_late(self) -> None:
        if self._part is Part.HEAD and self._begun:
            within = f"within {self._bounds.header_time:g} s (setting header_timeout)"
            self.refuse(_Refused(408, "too_slow", f"The headers did not arrive {within}."))
        else:
            self.transport.close()  # nothing was asked: an answer would be taken for that of the next request

    def _stalls(self, now: float) -> bool:
        """Whether the client takes its answers more slowly than is borne."""
        untaken = self.transport.get_write_buffer_size()
        if not untaken or not self._untaken:
            self._untaken, self._untaken_since = untaken, now
        elif (passed := now - self._untaken_since) > self._bounds.client_time:
            if untaken > self._untaken - min(self._untaken, max(1.0, passed * self._bounds.rate)):
                return True
            self._untaken, self._untaken_since = untaken, now
        return False

    # Answers

    def refuse(self, refused: _Refused) -> None:
        """Answer a request in the place of the application, and close the connection."""
        self._refusal = None
        if self._ending:
            self.transport.close()
            return
        cycle, whole = self._answering, self._part is not Part.BODY
        if cycle and whole:  # it came before the one that is refused, and gets its answer
            cycle.keep_alive = False
            self._deaf = True
            return
        if cycle:  # the application waits for its body
            cycle.disconnected = True
            cycle.message_event.set()
        if whole or (cycle and not cycle.response_started and not self.pipeline):
            self._write(refused)
        self.transport.close()

    def _write(self, refused: _Refused) -> None:
        request_id = request_log.new_id()
        request_log.write({"method": "-"}, refused.status, refused.code, 0, request_id)
        body = orjson.dumps({"message": refused.message, "code": refused.code})
        headers: list[tuple[bytes, bytes]] = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (request_log.HEADER, request_id),
        ]
        lines: list[Any] = [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[refused.status], *lines, b"\r\n", body]))
