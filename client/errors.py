"""What the client raises. Everything is a :class:`ClipQueueError`, and none holds an API key."""

from __future__ import annotations

NOT_OURS = "This is not the answer of a clip-queue server: another one is at the address, or a proxy changed it."


class ClipQueueError(Exception):
    """A request that failed.

    Attributes:
        message: what is wrong, as the server says it.
        status: of the HTTP response; None: there was none.
        code: the server's name for the error (docs/limits.md), where it says one.
        index: the place of the item to blame in what was given, where one is to blame.
        request_id: what the server's log names the request by.
        retry_after: seconds after which the server asks to try again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        index: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.index = index
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        about = {
            "HTTP": self.status,
            "code": self.code,
            "item": self.index,
            "request": self.request_id,
        }
        known = ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)
        return f"{self.message} ({known})" if known else self.message


class BadRequest(ClipQueueError):
    """The request cannot be served as it is: an input is bad, the key is wrong, there is no such model or job (4xx).

    Inputs that cannot be sent at all, such as a file that is not there, raise it without a ``status``.
    """


class Unavailable(ClipQueueError):
    """There was no answer, or the server is busy or away (429, 502, 503, 504), for longer than ``retry_for``."""


class JobFailed(ClipQueueError):
    """A job has no result: it is ``failed``, ``cancelled`` or ``expired`` (``state``)."""

    def __init__(self, message: str, *, state: str, code: str | None = None, index: int | None = None) -> None:
        super().__init__(message, code=code, index=index)
        self.state = state


class StillRunning(ClipQueueError, TimeoutError):
    """A job has not ended in the time that was given to wait for it. It goes on."""


class ClientClosed(ClipQueueError):
    """The client was closed before this, or in the middle of it."""

    def __init__(self) -> None:
        super().__init__("The client is closed.")
