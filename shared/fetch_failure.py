"""Why a URL was not fetched, told by kind."""

from __future__ import annotations

import ssl

import httpcore

NO_HOST = "Its host name cannot be resolved."
REFUSED = "The connection was refused."
TIMEOUT = "There was no answer in time."
TLS = "The TLS connection failed: its certificate is not trusted or not its host's, or it does not speak TLS."
BROKEN = "The connection failed, or what came is not HTTP."


def reason(error: BaseException | None) -> str:
    """Why a URL was not fetched, by the kind of the error or of one that caused it. Its text may quote the URL."""
    while error is not None:
        match error:
            case HostUnknown():
                return NO_HOST
            case httpcore.TimeoutException() | TimeoutError():
                return TIMEOUT
            case ssl.SSLError():
                return TLS
            case ConnectionRefusedError():
                return REFUSED
        error = error.__cause__ or error.__context__
    return BROKEN


class HostUnknown(httpcore.ConnectError):
    """The name of a URL's host has no address."""
