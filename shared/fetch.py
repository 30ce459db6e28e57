"""Fetching an image by URL without becoming a way into the network this service stands in.

What is checked, and when: the URL's form and host before anything is sent; the address at the moment of
connecting, on the very address that is connected to (a name that changes its answer gains nothing); both again
on each redirect. Time, bytes, redirects, sockets and concurrency are bounded by the ``fetch_*`` settings. Any
port is allowed: image stores run on odd ones, and the address decides what can be reached.

httpcore is used bare, without httpx's client: it reads no proxy from the environment, follows no redirect,
keeps no cookie, decompresses nothing, and does not log URLs, whose query often is a signature.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import httpcore
import httpx

from clip_queue.shared.errors import BadImage
from clip_queue.shared.fetch_policy import INVALID, NOT_ALLOWED, Address, Policy
from clip_queue.shared.settings import Settings

log = logging.getLogger(__name__)
# httpcore's debug log holds response headers, and a redirect's Location may be a signed URL.
logging.getLogger("httpcore").setLevel(logging.INFO)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to addresses in text form; raises OSError where there are none."""

UNREACHABLE = "Data pointed by URL could not be decoded into image."

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FAILURES = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
    OSError,  # TimeoutError, ssl.SSLError and the resolver's errors among them
    UnicodeError,  # a label that the resolver's codec refuses
)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name itself, checks every answer, and connects to what it has checked: by address, not by name."""

    def __init__(self, policy: Policy, resolve: Resolve, inner: httpcore.AsyncNetworkBackend) -> None:
        self._policy = policy
        self._resolve = resolve
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect within ``timeout`` seconds, shared among the addresses. BadImage if any of them is refused."""
        addresses = await self._addresses(host, port)
        if not all(self._policy.allows(address) for address in addresses):
            raise BadImage.because(NOT_ALLOWED)
        share = None if timeout is None else timeout / max(1, len(addresses))
        failure: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            return [ip_address(host)]
        except ValueError:
            return [ip_address(text) for text in dict.fromkeys(await self._resolve(host, port))]


class _Watch:
    """Sees whether a request has made a connection of its own, or uses one that was kept."""

    connected = False

    async def __call__(self, event: str, _: object) -> None:
        self.connected = self.connected or event == "connection.connect_tcp.started"


class Fetcher:
    """Fetches URLs, ``fetch_concurrency`` at once; the rest wait their turn (bound that by the request's deadline).

    Trusted are certifi's authorities, or those that ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` name instead. ``ssl_context``
    and ``resolve`` replace that trust and the system's names, for tests and unusual networks.
    """

    def __init__(
        self, settings: Settings, *, ssl_context: ssl.SSLContext | None = None, resolve: Resolve | None = None
    ) -> None:
        self._settings = settings
        self._policy = Policy(settings)
        self._slots = asyncio.Semaphore(settings.fetch_concurrency)
        # Names are resolved in threads of their own: a slow name server must not stop other work of the process.
        self._threads = ThreadPoolExecutor(min(32, settings.fetch_concurrency), thread_name_prefix="fetch-resolve")
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or httpx.create_ssl_context(),
            max_connections=settings.fetch_concurrency,
            # No fewer: httpcore counts those in use as well, and would close each after its use while there are more.
            max_keepalive_connections=settings.fetch_concurrency,
            keepalive_expiry=5.0,
            network_backend=GuardedBackend(self._policy, resolve or self._resolve, httpcore.AnyIOBackend()),
        )

    async def get(self, url: str) -> bytes:
        """The body that ``url`` leads to, at most ``max_image_bytes``, within ``fetch_timeout``. BadImage if not."""
        target = self._policy.check(url)
        async with self._slots:
            try:
                async with asyncio.timeout(self._settings.fetch_timeout):
                    for _ in range(self._settings.fetch_max_redirects + 1):
                        answer = await self._ask(target)
                        if isinstance(answer, bytes):
                            return answer
                        target = self._policy.check(answer)
            except _FAILURES as error:
                log.info("fetching from %s failed: %s", target.host, type(error).__name__)
                raise BadImage.because(UNREACHABLE) from None  # the cause's text may quote the URL
        limit = self._settings.fetch_max_redirects
        raise BadImage.because(f"URL redirects more than {limit} times (setting fetch_max_redirects).")

    async def aclose(self) -> None:
        """Close idle connections and let go of the resolver's threads."""
        await self._pool.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, url: httpx.URL) -> bytes | httpx.URL:
        """The body, or where it redirects to (not yet checked).

        A server may close a kept connection just as it is used again. That says nothing of the URL: it is asked anew.
        """
        while True:
            watch = _Watch()
            try:
                return await self._request(url, watch)
            except (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError):
                if watch.connected:
                    raise

    async def _request(self, url: httpx.URL, watch: _Watch) -> bytes | httpx.URL:
        """:meth:`_ask`, once."""
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers: dict[bytes | str, bytes | str] = {
            "Host": url.netloc,
            "User-Agent": "clip-queue",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        more = {"timeout": {"connect": self._settings.fetch_timeout}, "trace": watch}  # the rest is under the total
        async with self._pool.stream("GET", target, headers=headers, extensions=more) as response:
            found = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in found:
                try:
                    return url.join(found[b"location"].decode("utf-8", "replace"))
                except (httpx.InvalidURL, ValueError):
                    raise BadImage.because(INVALID) from None
            if not 200 <= response.status < 300:
                log.info("fetching from %s failed: status %d", url.host, response.status)
                raise BadImage.because(UNREACHABLE)
            if found.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
                # A small body may unpack into a huge one; images are compressed as they are.
                raise BadImage.because("URL answered with a compressed body (Content-Encoding), though asked not to.")
            return await self._body(response, int(found.get(b"content-length", b"0")))

    async def _body(self, response: httpcore.Response, announced: int) -> bytes:
        """The body as it streams in; ends at the limit whatever length was announced."""
        limit = self._settings.max_image_bytes
        body = bytearray()
        if announced <= limit:
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > limit:
                    break
            else:
                if body:
                    return bytes(body)
                raise BadImage.because("Data is not image.")
        raise BadImage.because(f"Image is larger than {limit} bytes (setting max_image_bytes).")

    async def _resolve(self, host: str, port: int) -> list[str]:
        def look_up() -> list[str]:
            return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

        return await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
