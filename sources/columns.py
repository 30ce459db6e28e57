"""A source's own columns: their names and types in the metadata, and which of them hold pictures and texts."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import orjson

from clip_queue.sources.source import Source, SourceError

EXTRA = "extra"  # what had no column of its own, as a JSON object
MOST = 256  # columns inferred; a source with a name for each row must not make as many columns

# Columns with pictures, the likeliest first; names in small letters. Paths and URLs are looked for after those, and
# after a column of a type that only pictures have.
PICTURES = ("image", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "img", "picture", "photo", "image_data")
PATHS = (
    *("image_path", "img_path", "path", "filepath", "file_path", "file_name", "filename", "file"),
    *("url", "image_url", "img_url", "uri"),
)
TEXTS = ("caption", "text", "txt", "alt", "alt_text", "alttext", "description", "prompt", "sentence", "title")

_OURS = re.compile(r"(source_)*(image_path|caption|error|extra)")


@lru_cache(maxsize=1024)
def own_name(name: str) -> str:
    """A column's name in the metadata: ``source_…`` where it would be taken for one that the metadata has anyway.

    No two names become one: ``source_caption`` is renamed as well.
    """
    name = _encodable(name)
    return f"source_{name}" if _OURS.fullmatch(name) else name


def is_own(source: Source, name: str) -> bool:
    """Whether a column goes into the metadata as itself: the texts are ``caption``. Paths and URLs of pictures are
    ``image_path``, but also stay under their own name, where they have one, since that is what tools look for."""
    return name != source.text_column and not name == source.image_column == "image_path"


def infer(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Columns for rows such as these, by the name of their pyarrow type, in order of first sight; ``extra`` is last.

    Integers and floats together are ``double``; any other mixture, and what is nested, is ``string``.
    """
    seen: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.items():
            name = own_name(key)
            if name in seen or len(seen) < MOST:
                kinds = seen.setdefault(name, set())
                if value is not None:
                    kinds.add(_kind(value))
    columns = {}
    for name, kinds in seen.items():
        kind = "double" if kinds == {"int64", "double"} else kinds.pop() if len(kinds) == 1 else "string"
        columns[name] = kind
    return {**columns, EXTRA: "string"}


def conform(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """Exactly ``columns``, each None or of its type; a ``string`` takes anything, as JSON where it is no text.

    What does not fit its column, or has none, goes into ``extra`` together, if there is such a column.
    """
    out: dict[str, Any] = dict.fromkeys(columns)
    rest = {}
    for key, value in values.items():
        name = own_name(key)
        kind = columns.get(name)
        if value is None:
            continue
        if kind == "string":
            out[name] = _encodable(value) if isinstance(value, str) else as_json(value)
        elif kind == _kind(value):
            out[name] = value
        elif kind == "double" and _kind(value) == "int64":
            out[name] = float(value)
        else:
            rest[key] = value
    if rest and EXTRA in columns:
        out[EXTRA] = as_json(rest)
    return out


def as_json(value: object) -> str | None:
    """JSON text; what JSON has no form for, as Python shows it; None where that does not work either."""
    try:
        return orjson.dumps(value, default=_shown, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return json.dumps(value, default=_shown)  # takes integers of any length, and half of a surrogate pair
    except (TypeError, ValueError, RecursionError):
        return None


def _encodable(text: str) -> str:
    """A text as it can be written: JSON may escape half of a surrogate pair, which is no character."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _shown(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _kind(value: object) -> str:
    """The column type that a value asks for."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "string"
    return "double" if isinstance(value, float) else "string"


def choose(
    source: Source,
    columns: Collection[str],
    images: Collection[str],
    texts: Collection[str],
    *,
    typed: str | None = None,
) -> Source:
    """``source`` with the columns its pictures and texts are taken from: as it asks for, or the likeliest.

    Args:
        columns: all there are.
        images, texts: those that can hold such.
        typed: one whose type says that it holds pictures.

    Raises:
        SourceError: a column asked for is not there or holds something else, or there is nothing to embed.
    """
    likely = (*PICTURES, *([typed.lower()] if typed else []), *PATHS)
    images = [name for name in images if name != source.text_column]
    image = _pick("image", source.image_column, source.images, columns, images, likely)
    text = _pick("text", source.text_column, source.texts, columns, [name for name in texts if name != image], TEXTS)
    if image is None and text is None:
        raise SourceError(
            f"there is nothing to embed: no column looks like images or texts. Name one of: {_listed(columns)}"
        )
    return replace(source, image_column=image, text_column=text, images=image is not None, texts=text is not None)


def _pick(
    what: str,
    asked: str | None,
    wanted: bool | None,
    columns: Collection[str],
    able: Collection[str],
    likely: Iterable[str],
) -> str | None:
    if wanted is False:
        return None
    if asked is not None:
        if asked not in columns:
            raise SourceError(f"there is no {what} column {asked!r}; the columns are: {_listed(columns)}")
        if asked not in able:
            raise SourceError(f"the {what} column {asked!r} cannot hold any; the columns are: {_listed(columns)}")
        return asked
    names: dict[str, str] = {}
    for name in able:
        names.setdefault(name.lower(), name)
    found = next((names[name] for name in likely if name in names), None)
    if found is None and wanted:
        raise SourceError(f"no column looks like {what}s; name one of: {_listed(columns)}")
    return found


def _listed(columns: Collection[str]) -> str:
    return ", ".join(list(columns)[:50]) + (" …" if len(columns) > 50 else "")
