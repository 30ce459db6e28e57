"""What the clients of remote stores raise, as errors of the operating system: each client has classes of its own.

Nothing above :mod:`clip_queue.sources.storage` sees a client's class: it catches :class:`OSError`. So an error of
another class is a bug of this project, and shows as one.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

# How a store that is away shows: each client has errors of its own, known by their names; s3fs makes numbers of some.
_AWAY = re.compile("Connect|Timeout|Transport|Credential|Authentication|RefreshError|HTTPClient")
_AWAY_NUMBERS = {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EBUSY), errno.ECONNRESET, errno.EPIPE}
# S3's words for a login that is wrong or has run out, whatever was asked for. An answer without a body has only "400".
_LOGIN = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "400"}


class StoreAway(OSError):
    """A store does not answer, or refuses the login. The file that was asked for is not to blame."""


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
    """Turn any error of a store's client, raised in the block, into one that a file raises.

    Raises:
        StoreAway: the store is away.
        PermissionError: the store refuses the file.
        OSError: any other error; one that is an OSError already is left as it is.
    """
    try:
        yield
    except Exception as error:
        raised = os_error(error)
        if raised is error:
            raise
        raise raised from error


def os_error(error: Exception) -> OSError:
    """What :func:`as_os_error` raises for an error of a store's client."""
    if is_away(error):
        return StoreAway(reason(error))
    if _is_refused(error):
        return PermissionError(reason(error))
    return error if isinstance(error, OSError) else OSError(reason(error))


def reason(error: Exception) -> str:
    """An error in words, for messages.

    An address that the error quotes is left out, because its query can be a signature: then the error's class is
    named. An error of a store gets a hint at what to check.
    """
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    words = text if isinstance(error, OSError) and "://" not in text else type(error).__name__
    if is_away(error):
        advice = ": check that the store can be reached, and the credentials for it"
    elif _is_refused(error):
        advice = ": check the credentials for the store"
    else:
        return words
    return words if words.endswith(advice) else words.removesuffix(".") + advice


def is_away(error: Exception) -> bool:
    """Whether an error says that a store is away (:class:`StoreAway`), in whatever way its client says it."""
    if isinstance(error, StoreAway) or (isinstance(error, OSError) and error.errno in _AWAY_NUMBERS):
        return True
    return client_code(error) in _LOGIN or any(_AWAY.search(kind.__name__) for kind in type(error).__mro__)


def is_barred(error: Exception) -> bool:
    """Whether a container cannot be read because its store is away or refuses it. Then no row is to blame.

    An image that may not be read is one row that fails; for a table it would be all of them.
    """
    return is_away(error) or _is_refused(error)


def client_code(error: Exception) -> str:
    """S3's word for an error: s3fs makes an error of Python's of it, and keeps the client's as the cause."""
    response = getattr(error.__cause__ or error, "response", None)
    found: str = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return found


def _is_refused(error: Exception) -> bool:
    return isinstance(error, PermissionError) and error.errno is None  # an error of the kernel's has a number
