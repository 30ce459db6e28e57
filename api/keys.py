"""API keys: which requests are accepted, and who owns their jobs."""

from __future__ import annotations

import base64
import hmac

from fastapi import Request

from clip_queue.api import application
from clip_queue.shared.errors import Unauthorized
from clip_queue.shared.owners import owner_of
from clip_queue.shared.settings import Settings


def key_of(request: Request, settings: Settings, body_key: object = None) -> str:
    """The key of a request: from its query, else from its Authorization header, else from its body.

    The header has it as `Bearer KEY`, or as the password of `Basic`, which clients send for an address like
    `http://any:KEY@host`. A password that is no key is for somebody else, such as a proxy.
    """
    if query := request.scope.get(application.KEY):
        return str(query)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return _as_sent(token.strip())
    if scheme.lower() == "basic" and accepts(settings, password := _password(token.strip())):
        return password
    return body_key if isinstance(body_key, str) else ""


def _password(token: str) -> str:
    """The password of Basic credentials (RFC 7617); empty if there is none."""
    try:
        return base64.b64decode(token, validate=True).decode().partition(":")[2]
    except ValueError:  # binascii.Error and UnicodeDecodeError among them
        return ""


def _as_sent(token: str) -> str:
    """The value of a header, which was read as Latin-1: it is UTF-8 if it can be."""
    try:
        return token.encode("latin-1").decode()
    except UnicodeError:
        return token


def authenticate(request: Request, settings: Settings, body_key: object = None) -> str:
    """The owner of what a request submits: a digest of its key. Without keys in the settings, all have one owner.

    Raises:
        Unauthorized: the settings have keys, and the request has none of them.
    """
    if not settings.api_keys:
        return owner_of(None)
    given = key_of(request, settings, body_key)
    if not accepts(settings, given):
        raise Unauthorized("Unauthorized api_key")
    return owner_of(given)


def accepts(settings: Settings, given: str) -> bool:
    """Whether a key is one of the settings'. All are compared, each in constant time, so the duration tells nothing."""
    key = given.encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(key, accepted.get_secret_value().encode()) for accepted in settings.api_keys]
    return any(matches)
