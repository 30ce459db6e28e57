"""Arrow's columns in the metadata: the types that they keep, and values from which arrow makes such columns again."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pyarrow import types

from clip_queue.sources.columns import as_json

NOTHING = "null"  # the type of a column that holds no value


def plain(kind: Any) -> Any:
    """A type without the parts that only say how its values are stored."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type)
    if types.is_dictionary(kind):
        return plain(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    return kind


def is_list(kind: Any) -> bool:
    """Whether a type is one of lists of any kind."""
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def kept(kind: Any) -> str | None:
    """The type that a column has in the metadata, by its name (:data:`clip_queue.sources.source.Source.columns`).

    A type that parquet has no short name for becomes text. None: the column is left out, because it may hold images,
    and readers load the metadata whole.
    """
    kind = plain(kind)
    if _holds_binary(kind):
        return None
    if types.is_fixed_size_binary(kind):
        return "binary"
    if types.is_float16(kind):
        return "float"
    if types.is_date(kind):
        return "date32[day]"
    if types.is_nested(kind) or types.is_decimal(kind) or (types.is_timestamp(kind) and kind.tz):
        return "string"
    return str(kind)


_SIGNED, _UNSIGNED = (tuple(f"{sign}int{bits}" for bits in (8, 16, 32, 64)) for sign in ("", "u"))


def widest(one: str | None, other: str | None) -> str | None:
    """The type of a column that is of two types (:func:`kept`); None if there is no such type that keeps both."""
    kinds = {kind for kind in (one, other) if kind != NOTHING}
    if len(kinds) < 2:
        return kinds.pop() if kinds else NOTHING
    if None in kinds:
        return None
    for integers in (_SIGNED, _UNSIGNED):
        if kinds <= {*integers}:
            return max((kind for kind in kinds if kind), key=integers.index)
    if kinds <= {*_SIGNED, *_UNSIGNED}:
        return None if "uint64" in kinds else "int64"
    return "double" if kinds <= {*_SIGNED, *_UNSIGNED, "float", "double"} else None


def values(array: Any, kind: str) -> list[Any]:
    """A column's values, of the type ``kind`` that :func:`kept` gives it. A value that cannot be converted is None."""
    array = _unpacked(array)
    stored = array.type
    if types.is_temporal(stored) and kind != "string":
        array = array.cast(pa.date32()) if types.is_date64(stored) else array
        # As numbers, because Python's dates have no year 0 and no nanoseconds.
        return list(array.cast(pa.int32() if array.type.bit_width == 32 else pa.int64()).to_pylist())
    if types.is_nested(stored):
        return [None if not scalar.is_valid else _json(scalar) for scalar in array]
    if types.is_decimal(stored) or types.is_temporal(stored):
        try:
            array = array.cast(pa.string())
        except pa.ArrowException:  # a time zone that is not known here
            array = array.cast(pa.timestamp(stored.unit)).cast(pa.string())
    elif types.is_integer(stored) and kind == "double":  # in other files the column has fractions
        array = array.cast(pa.float64(), safe=False)
    elif types.is_float16(stored):
        array = array.cast(pa.float32())
    return [_escaped(value) if kind == "string" else value for value in texts(array)]


def texts(array: Any) -> list[Any]:
    """A column's values; a text that is not UTF-8 is given as its bytes."""
    array = _unpacked(array)
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [_text(scalar) for scalar in array]


def _escaped(value: Any) -> Any:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _text(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes()


def _json(scalar: Any) -> str | None:
    try:
        return as_json(scalar.as_py())
    except (ValueError, OverflowError, pa.ArrowException):  # a text in it is not UTF-8, or Python has no such date
        return None


def _unpacked(array: Any) -> Any:
    if isinstance(array.type, pa.BaseExtensionType):
        return _unpacked(array.storage)
    return _unpacked(array.dictionary_decode()) if types.is_dictionary(array.type) else array


def _holds_binary(kind: Any) -> bool:
    kind = plain(kind)
    if types.is_nested(kind):
        return any(_holds_binary(kind.field(n).type) for n in range(kind.num_fields))
    return bool(types.is_binary(kind))
