"""How a source is given and read, as the caller says it: several paths as one, and the options of formats."""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from clip_queue.bulk.run.options import EmbedOptions
from clip_queue.shared.errors import BadInput
from clip_queue.sources import storage
from clip_queue.sources.formats.text_files import UNREADABLE
from clip_queue.sources.registry import FORMATS, READING
from clip_queue.sources.source import SourceError

Given = str | Path | Sequence[str | Path]
"""A source: a path, pattern or URL, or several paths."""

DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}  # words for them


def one_url(source: Given) -> str:
    """A source as one path, pattern or URL; several become a brace expression, without those that stand twice.

    Raises:
        SourceError: there is none, or a pattern or a name that cannot stand in braces is one of several.
    """
    if isinstance(source, str | bytes | os.PathLike):
        return _named(source)
    if not isinstance(source, Iterable):
        raise SourceError(f"a source is a path, a URL or several, and no {type(source).__name__}")
    urls = list(dict.fromkeys(storage.absolute(_named(each)) for each in source))
    if not urls:
        raise SourceError("there is no source: name at least one")
    if len(urls) == 1:
        return urls[0]
    wrong = next((url for url in urls if any(sign in url for sign in "{},*?[\\")), None)
    if wrong:
        raise SourceError(
            f"{wrong} cannot be one of several sources for its name: put quotes around one pattern instead"
        )
    same = len(
        list(takewhile(lambda parts: len(set(parts)) == 1, zip(*(url.split("/") for url in urls), strict=False)))
    )
    folder = "/".join(urls[0].split("/")[:same]) + "/"
    if folder.count("/") < 3 and any("://" in url for url in urls):
        raise SourceError(f"{urls[0]} and {urls[-1]} do not lie in one store: embed them one after the other")
    return f"{folder}{{{','.join(url[len(folder) :] for url in urls)}}}"


def _named(source: str | bytes | os.PathLike[str]) -> str:
    """A path or URL as text."""
    if not isinstance(source, str | bytes | os.PathLike):
        raise SourceError(f"a source is a path, a URL or several, and no {type(source).__name__}")
    name = os.fsdecode(source)
    storage.check_name("source", name)
    return name


def reading(format: str, given: EmbedOptions) -> dict[str, Any]:
    """What is asked of reading a format, for ``Source.storage``.

    Raises:
        SourceError: the format has no such option.
        BadInput: an option makes no sense.
    """
    asked: dict[str, Any] = {name: value for name, value in given.items() if name in READING and value is not None}
    for name in asked:
        if name not in FORMATS[format].options:
            able = [each for each, spec in FORMATS.items() if name in spec.options]
            raise SourceError(
                f"a source of the format {format} has no {name.replace('_', ' ')}: {', '.join(able)} have"
            )
    if "delimiter" in asked:
        asked["delimiter"] = _delimiter(asked["delimiter"])
    if "columns" in asked:
        asked["columns"] = _columns(asked["columns"])
    if "encoding" in asked:
        asked["encoding"] = _encoding(asked["encoding"])
    if "image_root" in asked:
        asked["image_root"] = storage.absolute(str(asked["image_root"]))
    return {
        name: value for name, value in asked.items() if (name, value) not in (("quoting", True), ("encoding", None))
    }


def _delimiter(asked: str) -> str:
    found = DELIMITERS.get(asked.lower(), asked)
    if len(found) != 1 or not found.isascii() or found in '"\r\n\0':
        raise BadInput(f"delimiter {asked!r} is not one character of ASCII, or one of: {', '.join(DELIMITERS)}")
    return found


def _columns(asked: str | Sequence[str]) -> list[str]:
    """Names of columns; in a text they have commas between, and one that has a comma itself has quotes around it."""
    if isinstance(asked, str):
        asked = next(csv.reader([asked], skipinitialspace=True), [])
    if not all(isinstance(name, str) for name in asked):
        raise BadInput("columns are names, as 'a,b' or ['a', 'b']")
    return list(dict.fromkeys(asked))


def _encoding(asked: str) -> str | None:
    """None: it is UTF-8."""
    try:
        "".encode(asked)
        codecs.getincrementaldecoder(asked)(UNREADABLE).decode(b"a", final=True)  # some codecs of Python read no files
    except (LookupError, ValueError):
        raise BadInput(f"encoding {asked!r} is not known: use a name as Python has them, cp1252 or utf-16") from None
    return None if asked.lower().replace("_", "-") in ("utf-8", "utf8") else asked
