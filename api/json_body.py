"""JSON as clients send it, at a bounded cost: depth and number of values are limited before Python objects are made."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson

from clip_queue.shared.errors import BadInput

MAX_DEPTH = 200
MAX_VALUES = 200_000  # values in one body; each costs at least two bytes
TOO_DEEP = "The body is nested too deeply."
_CHUNK = 1 << 20


class NotJson(ValueError):
    """The text is not JSON, or holds more than :data:`MAX_VALUES` values."""


def loads(raw: bytes) -> Any:
    """The value of a JSON text.

    orjson reads what is strictly JSON. The rest is read as ``json.loads`` does: a byte-order mark, NaN and Infinity,
    numbers of any size, halves of surrogate pairs.

    Raises:
        NotJson: it is not JSON, or has too many values.
        BadInput: it is nested too deeply.
    """
    if len(raw) > MAX_VALUES and _values(raw) > MAX_VALUES:
        raise NotJson(f"The body holds more than {MAX_VALUES} values.")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(raw, parse_int=_integer)
        except RecursionError:
            raise BadInput(TOO_DEEP) from None
        except ValueError:
            raise NotJson("The body is not valid JSON.") from None
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, dict | list)]
        if not level:
            return value
    raise BadInput(TOO_DEEP)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else -math.inf if digits.startswith("-") else math.inf


def _values(raw: bytes) -> int:
    """At least the number of values: commas and brackets, without those in strings if there are many."""
    found = sum(int(np.count_nonzero(_structure(chunk))) for chunk in _chunks(raw))
    return found if found <= MAX_VALUES else _values_outside_strings(raw)


def _values_outside_strings(raw: bytes) -> int:
    """Commas and brackets outside strings: after an even number of quotation marks, not counting escaped ones."""
    found, quotes = 0, np.uint8(0)
    for chunk in _chunks(raw.replace(b"\\\\", b"").replace(b'\\"', b"")):
        before = np.cumsum(chunk == ord('"'), dtype=np.uint8) + quotes  # wraps around, and stays even or odd
        found += int(np.count_nonzero(_structure(chunk) & (before & 1 == 0)))
        quotes = before[-1]
    return found


def _structure(chunk: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where there are commas and opening brackets; ``[`` and ``{`` differ in one bit."""
    where: np.ndarray[Any, np.dtype[np.bool_]] = (chunk == ord(",")) | ((chunk | 32) == ord("{"))
    return where


def _chunks(raw: bytes) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    whole = np.frombuffer(raw, np.uint8)
    return [whole[i : i + _CHUNK] for i in range(0, len(whole), _CHUNK)]
