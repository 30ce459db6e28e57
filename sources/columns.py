"""A source's own columns: their names and types in the metadata, and which of them hold images and texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import orjson

from clip_queue.sources.source import Source, SourceError

EXTRA = "extra"  # the column for values that have no column of their own, as a JSON object
MAX_COLUMNS = 256  # columns that are inferred: a source with a new name in each row must not make as many columns

# Columns with images, the likeliest first; names in small letters. Paths and URLs are looked for after those, and
# after a column of a type that only images have.
IMAGES = (
    *("image", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "img", "picture", "photo", "image_data"),
    *("image_base64", "base64", "image_b64", "b64"),
    *("images", "imgs", "pictures", "photos"),
)
PATHS = (
    *("image_path", "img_path", "path", "filepath", "file_path", "file_name", "image_file_name", "filename", "file"),
    *("image_url", "img_url", "url", "uri"),
    *("image_paths", "img_paths", "paths", "file_names", "image_file_names", "filenames", "files"),
    *("image_urls", "img_urls", "urls"),
)
TEXTS = (
    *("caption", "text", "txt", "alt", "alt_text", "alttext", "description", "prompt", "sentence", "title"),
    *("captions", "texts", "descriptions", "prompts", "sentences"),
)

# Also the columns of clip_queue.sources.place, which begin with ``source_`` themselves.
_RESERVED = re.compile(r"(source_)*(image_path|caption|error|extra)|(source_)+(file|row|image)")

WANTED = "columns"  # in Source.storage: the names of the own columns that the metadata keep; without it, all

# In Source.storage, by "images" and "texts": the column of those that are not wanted, and the column that is named like
# them and holds none that can be read.
LEFT_OUT, ODD = "left_out", "odd"

# In Source.storage: how the column of images holds them, TEXT where as paths or URLs, BYTES where encoded, with LIST
# before it where as lists; further columns of images; and those that may hold images or texts, by "images" and "texts".
HELD_AS, TEXT, BYTES, LIST = "image", "text", "bytes", "list of "
ALSO, MAYBE = "also", "maybe"
PLACES = "places"  # whether the metadata have the columns of clip_queue.sources.place
UNREAD = "unread"  # the suffixes of an archive's members that are not read, as far as its first rows tell


@lru_cache(maxsize=1024)
def own_name(name: str) -> str:
    """A column's name in the metadata: ``source_…`` where the metadata has a column of that name already.

    Two names never become one: ``source_caption`` is renamed as well.
    """
    name = _encodable(name)
    return f"source_{name}" if _RESERVED.fullmatch(name) else name


def name_in(source: Source, name: str) -> str:
    """A column's name in the metadata of a source that was planned.

    Release 0.1.0 had no columns of places: in an output that it began, a column of the source that is named like one of
    them kept its name, and keeps it.
    """
    found = own_name(name)
    kept = found not in source.columns and not source.storage.get(PLACES) and name in source.columns
    return name if kept else found


def is_own(source: Source, name: str) -> bool:
    """Whether a column goes into the metadata under its own name.

    The column of texts does not: it becomes ``caption``. The column of images' paths and URLs becomes ``image_path``
    and also keeps its own name, because tools look for that.
    """
    return is_wanted(source, name) and name != source.text_column and not name == source.image_column == "image_path"


def is_wanted(source: Source, name: str) -> bool:
    """Whether the metadata are to keep a column. One of images or texts that are left out they keep in any case: it
    tells in how many rows they are."""
    wanted = source.storage.get(WANTED)
    return wanted is None or name in wanted or name in source.storage.get(LEFT_OUT, {}).values()


def check_wanted(source: Source, columns: Collection[str]) -> None:
    """Raise :class:`SourceError` if a column that the metadata are to keep is none of ``columns``."""
    unknown = next((name for name in source.storage.get(WANTED) or () if name not in columns), None)
    if unknown is not None:
        raise SourceError(f"there is no column {unknown!r} to keep; the columns are: {listed(columns)}")


def with_wanted(source: Source, inferred: dict[str, str], known: Collection[str] | None = None) -> dict[str, str]:
    """Columns that were inferred from the first rows, with those that are wanted and only come later: any value fits
    them. ``extra`` stays the last. ``known``: all columns; None: those that are wanted are known to be there."""
    wanted = source.storage.get(WANTED) or ()
    late = [own_name(name) for name in wanted if is_own(source, name) and (known is None or name in known)]
    first = {name: kind for name, kind in inferred.items() if name != EXTRA}
    return {**first, **{name: "string" for name in late if name not in first}, EXTRA: "string"}


def infer(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Columns that fit these rows: name to pyarrow type, in the order in which the names appear; ``extra`` is last.

    Integers and floats together are ``double``. Any other mixture, and any nested value, is ``string``.
    """
    seen: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.items():
            name = own_name(key)
            if name in seen or len(seen) < MAX_COLUMNS:
                kinds = seen.setdefault(name, set())
                if value is not None:
                    kinds.add(_kind(value))
    columns = {}
    for name, kinds in seen.items():
        kind = "double" if kinds == {"int64", "double"} else kinds.pop() if len(kinds) == 1 else "string"
        columns[name] = kind
    return {**columns, EXTRA: "string"}


def conform(
    values: dict[str, Any], columns: dict[str, str], renamed: Callable[[str], str] = own_name
) -> dict[str, Any]:
    """The values of exactly ``columns``, each None or of its type. A ``string`` takes any value, as JSON if need be.

    The values that do not fit their column, or have none, go into ``extra`` together, if there is such a column.
    ``renamed`` gives a value's column.
    """
    out: dict[str, Any] = dict.fromkeys(columns)
    rest = {}
    for key, value in values.items():
        name = renamed(key)
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
    """A value as JSON text. NaN and infinities are null. A value that JSON cannot express is written as Python shows
    it; None if that fails too."""
    try:
        return orjson.dumps(value, default=_text_of, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError, RecursionError):
        pass
    try:  # takes integers of any length, and half of a surrogate pair
        return json.dumps(_finite(value), default=_text_of, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None


def _finite(value: object) -> object:
    """A value in which null stands for every number that is none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text: JSON may escape half of a surrogate pair, which is no character."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _text_of(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _kind(value: object) -> str:
    """The column type that fits a value."""
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
    lists: Collection[str] = (),
) -> Source:
    """``source`` with the columns that hold its images and texts: those that it asks for, or the likeliest.

    Args:
        columns: all columns.
        images, texts: the columns that can hold images, and those that can hold texts.
        typed: a column whose type says that it holds images.
        lists: the columns with a list of images in each row, of which ``NAME[N]`` chooses one.

    Raises:
        SourceError: a column asked for does not exist or holds something else, or there is nothing to embed.
    """
    check_wanted(source, columns)
    likely = (*IMAGES, *([typed.strip().lower()] if typed else []), *PATHS)
    images = [name for name in images if name != source.text_column]
    image = _pick("image", source.image_column, source.images, columns, images, likely, lists)
    texts = [name for name in texts if name != image]
    text = _pick("text", source.text_column, source.texts, columns, texts, TEXTS)
    if image is None and text is None:
        raise SourceError(
            f"there is nothing to embed: no column looks like images or texts. Name one of: {listed(columns)}"
        )
    left_out: dict[str, str] = {}
    odd: dict[str, str] = {}
    images = [name for name in images if name != text]
    for kind, chosen, able, names in (("images", image, images, likely), ("texts", text, texts, TEXTS)):
        if chosen is None:
            if column := _likeliest(able, names):
                left_out[kind] = column
            elif column := _likeliest([name for name in columns if name not in (image, text)], names):
                odd[kind] = column
    return replace(
        source,
        image_column=image,
        text_column=text,
        images=image is not None,
        texts=text is not None,
        storage={**source.storage, LEFT_OUT: left_out, ODD: odd},
    )


def check_image_root(source: Source) -> None:
    """Raise :class:`SourceError` if a folder of images is given, and no column of a source names any file."""
    if "image_root" in source.storage and not (source.images and source.storage[HELD_AS].removeprefix(LIST) != BYTES):
        raise SourceError("an image root is given, and no column holds images' paths: leave it out")


def item_of(column: str, columns: Collection[str]) -> tuple[str, int | None]:
    """A column's name, and which item of its lists is meant: ``images[0]`` is the first of ``images``; None: all."""
    found = None if column in columns else re.fullmatch(r"(.+)\[(\d{1,6})\]", column, re.DOTALL)
    return (found[1], int(found[2])) if found else (column, None)


def holds_something(value: object) -> bool:
    """Whether a value of a column of images or texts is more than nothing or white space."""
    return bool(value.strip() not in ("", "[]")) if isinstance(value, str) else value is not None


def _pick(
    what: str,
    asked: str | None,
    wanted: bool | None,
    columns: Collection[str],
    able: Collection[str],
    likely: Iterable[str],
    lists: Collection[str] = (),
) -> str | None:
    if wanted is False:
        return None
    if asked is not None:
        column, item = item_of(asked, columns)
        if column not in columns or (item is not None and column not in lists):
            raise SourceError(f"there is no {what} column {asked!r}; the columns are: {listed(columns)}")
        if column not in able:
            raise SourceError(f"the {what} column {asked!r} holds none to be read; the columns are: {listed(columns)}")
        return asked
    found = _likeliest(able, likely)
    if found is None and wanted:
        odd = _likeliest(columns, likely)
        why = f"column {odd!r} holds no {what} that can be read" if odd else f"no column looks like {what}s"
        raise SourceError(f"{why}; name one of: {listed(columns)}")
    return found


def _likeliest(able: Iterable[str], likely: Iterable[str]) -> str | None:
    names: dict[str, str] = {}
    for name in able:
        names.setdefault(name.strip().lower(), name)
    return next((names[name] for name in likely if name in names), None)


def listed(columns: Collection[str]) -> str:
    """Names of columns as a phrase, for messages."""
    return ", ".join(list(columns)[:50]) + (" …" if len(columns) > 50 else "")
