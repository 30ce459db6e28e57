"""All errors that one layer raises for another. Each has a code, an HTTP status and a message for the caller.

A worker sends an error to the API as a small dictionary (:meth:`ClipError.to_wire`). So the caller receives its type,
its message and the index of the item that caused it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ClipError(Exception):
    """A failure with a code. ``index`` is the place in the request of the item that caused it, if one item did."""

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
        """The error of a dictionary. One with an unknown code, from a newer worker, is an internal error."""
        by_code = {kind.code: kind for kind in reversed(_family(ClipError))}  # not cached: others add kinds
        kind = by_code.get(data.get("code", ""), ClipError)
        return kind(data.get("message", "unknown error"), index=data.get("index"))


class BadInput(ClipError):
    """The request cannot be served as it is. The message says what to change."""

    code, status = "bad_input", 400


class BadImage(BadInput):
    """An image cannot be used: it is unreadable, too large, no image, or at a refused address."""

    code = "bad_image"

    @classmethod
    def because(cls, cause: str, *, index: int | None = None) -> BadImage:
        return cls(f"Could not load input image. Cause: {cause}", index=index)


class TextTooLong(BadInput):
    """A text is over a limit: of characters before it is tokenised, or of tokens afterwards."""

    code = "text_too_long"


def check_text_length(text: str, max_chars: int, *, index: int | None = None) -> None:
    """Raise :class:`TextTooLong` for a text of more than ``max_chars`` characters."""
    if len(text) > max_chars:
        raise TextTooLong(
            f"Text input is too long for the model context length: {len(text)} characters, {max_chars} at most.",
            index=index,
        )


class Unauthorized(ClipError):
    code, status = "unauthorized", 401


class UnknownModel(ClipError):
    code, status = "unknown_model", 404


class UnknownJob(ClipError):
    code, status = "unknown_job", 404


class JobFinished(ClipError):
    """The request needs a job in another state: one that has not ended, or one that has succeeded."""

    code, status = "job_finished", 409


class Cancelled(ClipError):
    code, status = "cancelled", 409


class TooLarge(ClipError):
    """The request body is larger than the limit."""

    code, status = "too_large", 413


class UnsupportedEncoding(ClipError):
    """The request body is compressed in a way that is not read here. ``accept`` lists those that are."""

    code, status = "unsupported_encoding", 415

    def __init__(self, message: str, *, accept: str = "", index: int | None = None) -> None:
        super().__init__(message, index=index)
        self.accept = accept


class KeyReused(ClipError):
    """An idempotency key was used before, with another body."""

    code, status = "idempotency_key_reused", 422


class QueueFull(ClipError):
    code, status = "queue_full", 429


class Unavailable(ClipError):
    """The store cannot be reached, or no live worker serves the model."""

    code, status = "unavailable", 503


class Late(ClipError):
    """The result did not arrive before the deadline."""

    code, status = "late", 504


class WorkerLost(ClipError):
    """The job lost its worker too often and is not tried again."""

    code, status = "worker_lost", 500


class Unreadable(ClipError):
    """What another release has written, or what is damaged, and cannot be read here."""

    code, status = "unreadable", 500


def _family(kind: type[ClipError]) -> list[type[ClipError]]:
    return [kind, *(k for sub in kind.__subclasses__() for k in _family(sub))]
