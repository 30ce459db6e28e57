"""A running service, as the commands that look at one ask it: over HTTP, as any client does."""

from __future__ import annotations

from typing import Any

import httpx

from clip_queue.client.transport import KEY, URL, Server

TIMEOUT = 10.0  # seconds; /readiness tries each model


class ServiceError(Exception):
    """The service cannot be asked, or refuses; the message says what to do."""


class Service:
    """The service at ``url``, by default that of ``CLIP_QUEUE_URL``, else on this machine. The key is
    ``CLIP_QUEUE_API_KEY``. Raises :class:`ServiceError` where either makes no sense."""

    def __init__(self, url: str | None) -> None:
        try:
            self._server = Server(url, None, TIMEOUT, 0.0, 1, None)
        except ValueError as error:
            raise ServiceError(f"{error} ({URL}, {KEY})") from None

    @property
    def url(self) -> str:
        return self._server.url

    def get(
        self, path: str, params: dict[str, Any] | None = None, *, accept: tuple[int, ...] = (200,)
    ) -> httpx.Response:
        """The response to a GET. Raises :class:`ServiceError` for a status that is not in ``accept``."""
        try:
            with httpx.Client(timeout=TIMEOUT) as http:
                response = http.get(self.url + path, params=params, auth=self._server.auth)
        except httpx.HTTPError as error:
            raise ServiceError(
                f"{self.url} does not answer ({type(error).__name__}): start it with `clip-queue up`, or name another "
                f"with --url or {URL}"
            ) from None
        if response.status_code in accept:
            return response
        if response.status_code == 401:
            raise ServiceError(f"{self.url} wants an API key, or another one: set {KEY}")
        raise ServiceError(f"{self.url}{path} answers {response.status_code}{_reason(response)}")

    def document(self, response: httpx.Response) -> dict[str, Any]:
        """A response's JSON object. Raises :class:`ServiceError` if it is none: something else listens there."""
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self.stranger
        return found

    @property
    def stranger(self) -> ServiceError:
        """The error for an answer that no clip-queue gives."""
        return ServiceError(f"what answers at {self.url} is not clip-queue: name another with --url or {URL}")


def _reason(response: httpx.Response) -> str:
    try:
        said = response.json()
        return f": {said['message'] if 'message' in said else said['detail'][0]['msg']}"
    except (ValueError, LookupError, TypeError):
        return " (is this clip-queue?)"
