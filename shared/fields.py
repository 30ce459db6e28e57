"""Reading data that another release may have written: what is known is taken, what is not is ignored or named."""

from __future__ import annotations

from dataclasses import MISSING, fields
from enum import StrEnum
from functools import lru_cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from clip_queue.shared.errors import Unreadable

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


def read(kind: type[T], raw: Any) -> T:
    """A dataclass from a dictionary. Fields of a later release are ignored.

    Raises:
        Unreadable: it is no dictionary, a field without a default is missing, or a value has another type. Of a list
            or a dictionary, only that it is one is checked.
    """
    if not isinstance(raw, dict):
        raise Unreadable(f"no fields of {kind.__name__}, but {type(raw).__name__}")
    values: dict[str, Any] = {}
    for name, (types, needed) in _of(kind).items():
        if name not in raw:
            if needed:
                raise Unreadable(f"{kind.__name__} has no field {name!r}")
        elif not isinstance(raw[name], types):
            raise Unreadable(f"field {name!r} of {kind.__name__} is {type(raw[name]).__name__}")
        else:
            values[name] = raw[name]
    return kind(**values)


def _of(kind: Any) -> dict[str, tuple[tuple[type, ...], bool]]:
    return _fields(kind)


@lru_cache(maxsize=64)
def _fields(kind: Any) -> dict[str, tuple[tuple[type, ...], bool]]:
    """The types that each field of a dataclass may have, and whether it is needed."""
    hints = get_type_hints(kind)
    return {
        f.name: (_types(hints[f.name]), f.default is MISSING and f.default_factory is MISSING) for f in fields(kind)
    }


def _types(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, UnionType):
        return tuple(t for part in get_args(hint) for t in _types(part))
    kind = get_origin(hint) or hint
    return {float: (float, int), tuple: (tuple, list)}.get(kind, (kind,))


def member(kind: type[E], word: str) -> E:
    """The member of an enumeration. A word that a later release has added is a member of its own: it equals no other,
    and is shown as it is."""
    known: E | None = _members(kind).get(word)
    if known is not None:
        return known
    later = str.__new__(kind, word)
    later._name_ = later._value_ = word
    return later


@lru_cache(maxsize=64)
def _members(kind: Any) -> dict[str, Any]:
    return {str(member): member for member in kind}


def is_known(word: StrEnum) -> bool:
    """Whether this release knows the word that :func:`member` has read."""
    return word in _members(type(word))


def known_fields(kind: type[Any], raw: dict[str, Any]) -> dict[str, Any]:
    """The values of ``raw`` that are fields of the dataclass ``kind``."""
    return {name: value for name, value in raw.items() if name in _of(kind)}
