"""What the clients of stores raise, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SECRET = "https://store/a?signature=secret"


class ClientError(Exception):
    """A class that only a client knows."""


class EndpointConnectionError(Exception):
    """A client's word for a store that does not answer."""


class Refused(PermissionError):
    """A client's word for a file that may not be read: it has no number of the kernel's."""


def raising(error: Exception) -> Callable[..., Any]:
    def method(*_: object, **__: object) -> Any:
        raise error

    return method


class BrokenFile:
    """An open file whose client fails at everything."""

    def __init__(self, error: Exception) -> None:
        self.read = self.seek = self.tell = self.close = raising(error)
