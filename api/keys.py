"""API keys: who may ask, and whose a job is."""

from __future__ import annotations

import hashlib
import hmac

from fastapi import Request

from clip_queue.shared.errors import Unauthorized
from clip_queue.shared.settings import Settings


def key_of(request: Request, body_key: object = None) -> str:
    """The key a request brings: from the query, else the Authorization header, else the body."""
    if query := request.query_params.get("api_key"):
        return query
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return body_key if isinstance(body_key, str) else ""


def owner(request: Request, settings: Settings, body_key: object = None) -> str:
    """The tenant of a request: a digest of its key, the same for everyone where no keys are set.

    Raises:
        Unauthorized: keys are set and this is none of them.
    """
    if not settings.api_keys:
        return tenant(None)
    given = key_of(request, body_key).encode()
    # Every key is compared, each in constant time: how long it takes tells nothing.
    matches = [hmac.compare_digest(given, key.get_secret_value().encode()) for key in settings.api_keys]
    if not any(matches):
        raise Unauthorized("Unauthorized api_key")
    return tenant(given.decode())


def tenant(key: str | None) -> str:
    """Whose job it is that a key submits; None: no keys are set."""
    return "open" if key is None else hashlib.sha256(key.encode()).hexdigest()[:24]
