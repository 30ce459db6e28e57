"""What the blocking and the asynchronous client share of HTTP: the address, the key, and which failure is which."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import replace
from urllib.parse import urlsplit

import httpx

from clip_queue.client.batches import ClientLimits
from clip_queue.client.errors import ClipQueueError, Unavailable
from clip_queue.client.steps import Answer, Request
from clip_queue.version import __version__

URL, KEY = "CLIP_QUEUE_URL", "CLIP_QUEUE_API_KEY"  # environment variables
DEFAULT_URL = "http://127.0.0.1:9001"

_NEVER = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)  # failures that are no matter of time


class Key(httpx.Auth):
    """An API key. It goes into the header of a request, and is in no representation of anything else."""

    def __init__(self, key: str) -> None:
        if not key.isprintable() or not key.strip() or key != key.strip():
            raise ValueError("The API key is empty, or holds spaces at its ends or characters that cannot be printed.")
        self._header = f"Bearer {key}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self._header
        yield request

    def __repr__(self) -> str:
        return "Key(…)"


class Server:
    """Where the service is, the key to it, and how it is asked. The arguments are those of a client.

    Raises :class:`ValueError`, which quotes neither URL nor key.
    """

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        timeout: float,
        retry_for: float,
        concurrency: int,
        limits: ClientLimits | None,
    ) -> None:
        if not timeout > 0 or not retry_for >= 0 or not concurrency >= 1:  # so that NaN is refused too
            raise ValueError("timeout is more than 0, retry_for at least 0, concurrency at least 1.")
        self.timeout = timeout
        self.retry_for = retry_for
        self.concurrency = concurrency
        self.limits = replace(limits or ClientLimits())  # what is learned of this server is not for others
        url = (url or os.environ.get(URL) or DEFAULT_URL).strip()
        try:
            httpx.URL(url)  # what it cannot read, it would refuse at the first request
            parts = urlsplit(url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except (ValueError, httpx.InvalidURL):
            whole = False
        if not whole:
            raise ValueError("The server's URL is not http://HOST[:PORT] or https://….")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("The server's URL has no query, user or password: give the key as api_key.")
        self.url = url.rstrip("/")
        key = os.environ.get(KEY) if api_key is None else api_key
        self.auth = Key(key) if key else httpx.USE_CLIENT_DEFAULT

    def build(self, http: httpx.Client | httpx.AsyncClient, request: Request) -> httpx.Request:
        """A request as httpx sends it, but for the key."""
        headers = {
            "User-Agent": f"clip-queue-client/{__version__}",
            **({"Content-Type": "application/json"} if request.body is not None else {}),
            **request.headers,
        }
        return http.build_request(
            request.method,
            self.url + request.path,
            content=request.body,
            params=request.params or None,
            headers=headers,
            timeout=httpx.Timeout(self.timeout, read=self.timeout + request.patience),
        )

    def failure(self, error: httpx.HTTPError) -> ClipQueueError:
        """Why there was no answer: :class:`Unavailable` if there may be one later."""
        what = type(error).__name__
        why = f": {error}" if isinstance(error, httpx.NetworkError) and str(error) else ""
        message = f"{self.url} did not answer ({what}{why})."
        if isinstance(error, _NEVER) or "CERTIFICATE_VERIFY_FAILED" in why:
            return ClipQueueError(message)
        return Unavailable(message)


def answer_of(response: httpx.Response) -> Answer:
    """A response that has been read."""
    return Answer(response.status_code, response.headers, response.content)
