"""In words: what of a source is embedded, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_queue.sources.columns import ALSO, HELD_AS, LEFT_OUT, MAYBE, ODD, TEXT, UNREAD
from clip_queue.sources.left_out import PASSED
from clip_queue.sources.registry import FORMATS, IMAGE_FOLDER
from clip_queue.sources.source import IMAGES, TEXTS, Source

MAX_KINDS = 8  # suffixes of files that are named

_IMAGES = FORMATS[IMAGE_FOLDER].suffixes


def scope_text(source: Source, left_out: Mapping[str, int] | None = None) -> str:
    """What is embedded, as ``images and texts: images from `image_url`, texts from `caption` ``, and what is not.

    Args:
        source: the source as it was planned.
        left_out: how many rows have images or texts that are not embedded; None: they are not read yet.
    """
    columns = {IMAGES: source.image_column, TEXTS: source.text_column}
    wanted = [kind for kind, embedded in ((IMAGES, source.images), (TEXTS, source.texts)) if embedded]
    text = " and ".join(wanted) if len(wanted) > 1 else f"{wanted[0]} only" if wanted else "nothing"
    if named := [f"{kind} from `{columns[kind]}`" for kind in wanted if columns[kind]]:
        text += f": {', '.join(named)}"
    hidden, odd = (source.storage.get(name, {}) for name in (LEFT_OUT, ODD))
    for kind in (IMAGES, TEXTS):
        if kind in wanted:
            continue
        if kind in odd:
            text += f"; no {kind} can be read in `{odd[kind]}`"
        if left_out is None:
            text += f"; the {kind} in `{hidden[kind]}` are left out: --{kind}" if kind in hidden else ""
        elif rows := left_out.get(kind, 0):
            text += f"; {counted(rows, 'hold', 'holds')} {kind} that are left out: --{kind}"
    if also := source.storage.get(ALSO):
        named = [f"`{column}`" for column in also]
        text += f"; {', '.join(named)} {'holds' if len(named) == 1 else 'hold'} images as well: --image-column"
    for kind, columns in source.storage.get(MAYBE, {}).items():
        if columns:
            named = [f"`{column}`" for column in columns[:MAX_KINDS]] + ["…"] * (len(columns) > MAX_KINDS)
            text += f"; {', '.join(named)} may hold {kind}: --{kind.removesuffix('s')}-column"
    if unread := source.storage.get(UNREAD):
        more = ", …" if len(unread) > MAX_KINDS else ""
        text += f"; members .{', .'.join(unread[:MAX_KINDS])}{more} are not read"
    return text


def passed_lines(source: Source, rows: int | None = None) -> list[str]:
    """The files of other kinds, in a line; none if there are none. Known once all shards are planned.

    Args:
        rows: how many rows there are. A table with fewer than there are images beside it does not name all of them.
    """
    passed: dict[str, Any] = source.storage.get(PASSED, {})
    lines = []
    if source.image_column and source.storage.get(HELD_AS, "").endswith(TEXT):  # rows name them by their paths
        images = [number for suffix, (number, _) in passed.items() if suffix in _IMAGES]
        passed = {suffix: about for suffix, about in passed.items() if suffix not in _IMAGES}
        if rows is not None and (more := sum(images) - rows) > 0:
            lines.append(f"{more:,} of the {sum(images):,} images there, or more, are left out: no row names them")
    if total := sum(number for number, _ in passed.values()):
        kinds = sorted(passed.items(), key=lambda item: -item[1][0])
        named = [f"{number:,} {_kind(source, suffix)} ({first})" for suffix, (number, first) in kinds[:MAX_KINDS]]
        etc = ", …" if len(kinds) > MAX_KINDS else ""
        files = "file of another kind is" if total == 1 else "files of other kinds are"
        lines.append(f"{total:,} {files} left out: {', '.join(named)}{etc}")
    return lines


def _kind(source: Source, suffix: str) -> str:
    """A suffix in words, with what would read a table that lies among images."""
    table = next((name for name in ("csv", "jsonl") if suffix in FORMATS[name].suffixes), None)
    hint = f", which --format {table} reads" if table and source.format == IMAGE_FOLDER else ""
    return f"{suffix or 'without a suffix'}{hint}"


def counted(rows: int, many: str = "have", one: str = "has") -> str:
    """A number of rows with its verb, as ``1,200 rows have``."""
    return f"1 row {one}" if rows == 1 else f"{rows:,} rows {many}"
