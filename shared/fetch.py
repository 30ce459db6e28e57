"""Fetching images by URL. A caller must not reach the service's own network in this way.

The form and the host of a URL are checked before anything is sent. The address is checked when the connection is made,
and exactly the checked address is connected to, so a host name whose address changes gains nothing. Both are checked
again for each redirect. The ``fetch_*`` settings limit time, bytes, redirects, sockets and concurrency. Every port is
allowed: image stores use unusual ones, and the address decides what can be reached.

httpcore is used directly, without httpx's client: it reads no proxy from the environment, follows no redirect, keeps no
cookie, decompresses nothing, and does not log URLs, whose query often is a signature.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address

import httpcore
import httpx

from clip_queue.shared.errors import BadImage, ClipError, Late
from clip_queue.shared.fetch_budget import FetchBudget
from clip_queue.shared.fetch_failure import HostUnknown, reason
from clip_queue.shared.fetch_policy import INVALID, NOT_ALLOWED, Address, Policy
from clip_queue.shared.settings import Settings

log = logging.getLogger(__name__)
# httpcore's debug log holds response headers, and a redirect's Location may be a signed URL.
logging.getLogger("httpcore").setLevel(logging.INFO)

LookUp = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host and a port to its addresses as text. Raises OSError if it has none."""

UNREACHABLE = "Data pointed by URL could not be decoded into image."

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FAILURES = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
    OSError,  # TimeoutError, ssl.SSLError and the resolver's errors among them
    UnicodeError,  # a host name that TLS cannot encode
)


@dataclass(frozen=True, slots=True, repr=False)
class ImageUrl:
    """An image that is not fetched yet. Its query may be a signature, so messages and logs must not contain it.

    ``index`` is the index in errors about it; None if it is the only image.
    """

    url: str
    index: int | None = None


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves each host name itself, checks all its addresses, and connects to an address that it has checked."""

    def __init__(self, policy: Policy, look_up: LookUp, inner: httpcore.AsyncNetworkBackend) -> None:
        self._policy = policy
        self._look_up = look_up
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect within ``timeout`` seconds for all addresses together. Raises BadImage if one of them is refused."""
        addresses = await self._addresses(host, port)
        if not all(self._policy.allows(address) for address in addresses):
            raise BadImage.because(NOT_ALLOWED)
        share = None if timeout is None else timeout / max(1, len(addresses))
        failure: Exception = HostUnknown()
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
            pass
        try:
            found = await self._look_up(host, port)
        except (OSError, UnicodeError):  # UnicodeError: the resolver cannot encode the name
            raise HostUnknown from None
        return [ip_address(text) for text in dict.fromkeys(found)]


class _Watch:
    """Whether a request has opened a connection, or uses one that was open before."""

    connected = False

    async def __call__(self, event: str, _: object) -> None:
        self.connected = self.connected or event == "connection.connect_tcp.started"


class Fetcher:
    """Fetches URLs, at most ``fetch_concurrency`` at the same time. Others wait, without a limit of their own.

    Args:
        ssl_context: which certificates are trusted. By default those of certifi's authorities, or of the authorities
            that ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` name.
        look_up: resolves host names. By default the system does.
    """

    def __init__(
        self, settings: Settings, *, ssl_context: ssl.SSLContext | None = None, look_up: LookUp | None = None
    ) -> None:
        self._settings = settings
        self._policy = Policy(settings)
        self._budget = FetchBudget(settings)
        self._slots = asyncio.Semaphore(settings.fetch_concurrency)
        # Host names are resolved in threads of their own: a slow name server must not stop other work of the process.
        self._threads = ThreadPoolExecutor(min(32, settings.fetch_concurrency), thread_name_prefix="fetch-resolve")
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or httpx.create_ssl_context(),
            max_connections=settings.fetch_concurrency,
            # Not fewer: httpcore counts connections in use too, and would close connections while there are more.
            max_keepalive_connections=settings.fetch_concurrency,
            keepalive_expiry=5.0,
            network_backend=GuardedBackend(self._policy, look_up or self._look_up, httpcore.AnyIOBackend()),
        )

    async def get(self, url: str) -> bytes:
        """The body at ``url``, at most ``max_image_bytes``, within ``fetch_timeout``. Raises BadImage."""
        target = self._policy.check(url)
        async with self._slots:
            try:
                async with asyncio.timeout(self._settings.fetch_timeout):
                    for _ in range(self._settings.fetch_max_redirects + 1):
                        found = await self._ask(target)
                        if isinstance(found, bytes):
                            return found
                        target = self._policy.check(found)
            except _FAILURES as error:
                why = reason(error)
                log.info("fetching from %s failed: %s", target.raw_host.decode("ascii", "replace"), why)
                raise BadImage.because(f"{UNREACHABLE} {why}") from None
        limit = self._settings.fetch_max_redirects
        raise BadImage.because(f"URL redirects more than {limit} times (setting fetch_max_redirects).")

    async def resolve(
        self, items: Sequence[bytes | str | ImageUrl | ClipError], timeout: float, *, skip: bool = False
    ) -> list[bytes | str | ClipError]:
        """``items`` in order, each URL replaced by its image. All are fetched at the same time.

        Args:
            timeout: longest wait for all of them, seconds.
            skip: replace a URL that cannot be fetched by its error, and raise nothing.

        Raises:
            BadImage: for the first image by order that cannot be fetched, with its index. The others are cancelled.
            Unavailable: this process fetches more than ``fetch_max_total_bytes``.
            Late: ``timeout`` passed.
        """
        if not any(isinstance(item, ImageUrl) for item in items):
            return [item for item in items if not isinstance(item, ImageUrl)]
        with self._budget.request():
            return await self._resolve(items, timeout, skip)

    async def _resolve(
        self, items: Sequence[bytes | str | ImageUrl | ClipError], timeout: float, skip: bool
    ) -> list[bytes | str | ClipError]:
        """:meth:`resolve`, where there is a URL."""
        until = asyncio.get_running_loop().time() + timeout
        fetches = {
            i: asyncio.create_task(self.get(item.url)) for i, item in enumerate(items) if isinstance(item, ImageUrl)
        }
        resolved: list[bytes | str | ClipError] = []
        try:
            for place, item in enumerate(items):  # awaited in order, so the first error by order comes first
                if not isinstance(item, ImageUrl):
                    resolved.append(item)
                    continue
                try:
                    async with asyncio.timeout_at(until):
                        resolved.append(await fetches[place])
                except TimeoutError:
                    late = Late(f"The images could not be fetched within {timeout:g} s.", index=item.index)
                    if not skip:
                        late.index = None  # all were waited for
                        raise late from None
                    resolved.append(late)
                except ClipError as error:
                    error.index = item.index
                    if not skip:
                        raise
                    resolved.append(error)
            return resolved
        finally:
            for task in fetches.values():
                task.cancel()
            await asyncio.gather(*fetches.values(), return_exceptions=True)

    async def aclose(self) -> None:
        """Close the connections and end the threads."""
        await self._pool.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, url: httpx.URL) -> bytes | httpx.URL:
        """The body, or the URL that it redirects to, which is not checked yet.

        A server may close an open connection in the moment when it is used again. Then the request is sent again.
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
        more = {
            "timeout": {"connect": self._settings.fetch_timeout},
            "trace": watch,
        }
        async with self._pool.stream("GET", target, headers=headers, extensions=more) as response:
            found = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in found:
                try:
                    return url.join(found[b"location"].decode("utf-8", "replace"))
                except (httpx.InvalidURL, ValueError):
                    raise BadImage.because(INVALID) from None
            if not 200 <= response.status < 300:
                log.info("fetching from %s failed: status %d", url.raw_host.decode("ascii", "replace"), response.status)
                raise BadImage.because(f"{UNREACHABLE} Its server answered with status {response.status}.")
            if found.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
                # A small body may decompress to a huge one. Image formats are compressed anyway.
                raise BadImage.because("URL answered with a compressed body (Content-Encoding), though asked not to.")
            return await self._body(response, int(found.get(b"content-length", b"0")))

    async def _body(self, response: httpcore.Response, announced: int) -> bytes:
        """The body. Reading stops at the limit, whatever length was announced."""
        limit = self._settings.max_image_bytes
        body = bytearray()
        if announced <= limit:
            async for chunk in response.aiter_stream():
                self._budget.spend(len(chunk))
                body += chunk
                if len(body) > limit:
                    break
            else:
                if body:
                    return bytes(body)
                raise BadImage.because("Data is not image.")
        raise BadImage.because(f"Image is larger than {limit} bytes (setting max_image_bytes).")

    async def _look_up(self, host: str, port: int) -> list[str]:
        def addresses() -> list[str]:
            return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

        return await asyncio.get_running_loop().run_in_executor(self._threads, addresses)
