"""Every error that crosses a floor, with its code, its HTTP status and a message for the caller.

An error travels from the worker to the door as a small dictionary (:meth:`ClipError.to_wire`), so what the
worker met reaches the caller typed, with the index of the item that caused it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ClipError(Exception):
    """A failure with a name. ``index`` is the item's place in the request, where one item is to blame."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, index: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.index = index
        self.retry_after = retry_after

    def to_wire(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "index": self.index}

    @staticmethod
    def from_wire(data: dict[str, Any]) -> ClipError:
        """The typed error again; an unknown code (a newer worker) stays readable as an internal error."""
        by_code = {kind.code: kind for kind in reversed(_family(ClipError))}  # now: other floors have their own
        kind = by_code.get(data.get("code", ""), ClipError)
        return kind(data.get("message", "unknown error"), index=data.get("index"))


class BadInput(ClipError):
    """The request asks for something that cannot be done; its message says what to change."""

    code, status = "bad_input", 400


class BadImage(BadInput):
    """An image that cannot be had: unreadable, too large, not an image, a refused address."""

    code = "bad_image"

    @classmethod
    def because(cls, cause: str, *, index: int | None = None) -> BadImage:
        return cls(f"Could not load input image. Cause: {cause}", index=index)


class TextTooLong(BadInput):
    code = "text_too_long"


class Unauthorized(ClipError):
    code, status = "unauthorized", 401


class UnknownModel(ClipError):
    code, status = "unknown_model", 404


class UnknownJob(ClipError):
    code, status = "unknown_job", 404


class JobFinished(ClipError):
    """The job has ended, so it cannot be cancelled any more."""

    code, status = "job_finished", 409


class Cancelled(ClipError):
    code, status = "cancelled", 409


class TooLarge(ClipError):
    """The request body is larger than the limit."""

    code, status = "too_large", 413


class KeyReused(ClipError):
    """An idempotency key came back with another body."""

    code, status = "idempotency_key_reused", 422


class QueueFull(ClipError):
    code, status = "queue_full", 429


class Unavailable(ClipError):
    """The store cannot be reached, or no live worker serves the model."""

    code, status = "unavailable", 503


class Late(ClipError):
    """The result did not come before the deadline."""

    code, status = "late", 504


class WorkerLost(ClipError):
    """The job took its worker down too often and is not tried again."""

    code, status = "worker_lost", 500


def _family(kind: type[ClipError]) -> list[type[ClipError]]:
    return [kind, *(k for sub in kind.__subclasses__() for k in _family(sub))]
