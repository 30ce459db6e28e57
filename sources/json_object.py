"""JSON objects of sources, as other programs write them."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from clip_queue.shared.errors import BadInput

_LONG = re.compile(rb"[0-9]{19}")  # digits of an integer that may have more than 64 bits
_DIGITS = 4_000  # of the longest integer that Python reads: a longer one is kept as a text


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """The object that ``data`` is the JSON of.

    What orjson refuses or rounds, Python reads: integers of any length, NaN and infinities (None here), and halves of
    surrogate pairs, which stay in the texts.

    Args:
        what: names it in an error.

    Raises:
        BadInput: it is no JSON, or no object.
    """
    try:
        value = None if _LONG.search(data) else orjson.loads(data)
    except orjson.JSONDecodeError:
        value = None
    if value is None:
        value = _python(data, what)
    if not isinstance(value, dict):
        raise BadInput(f"{what} is JSON, but no object.")
    return value


def _python(data: bytes, what: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise BadInput(f"{what} is not JSON: {error.msg} (column {error.colno}).") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{what} is not JSON: not UTF-8 from its byte {error.start + 1} on.") from None
    except (ValueError, RecursionError):
        raise BadInput(f"{what} is JSON that is nested too deeply, or holds a number that is too long.") from None


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _DIGITS else digits
