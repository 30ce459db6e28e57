"""In words: what of a source is embedded, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping

from clip_queue.sources.columns import ALSO, HELD_AS, LEFT_OUT, ODD, TEXT
from clip_queue.sources.left_out import PASSED
from clip_queue.sources.registry import FORMATS, IMAGE_FOLDER
from clip_queue.sources.source import IMAGES, TEXTS, Source

MAX_KINDS = 8  # suffixes of files that are named


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
    return text


def passed_lines(source: Source) -> list[str]:
    """The files of other kinds, in a line; none if there are none. Known once all shards are planned."""
    passed = source.storage.get(PASSED, {})
    if source.image_column and source.storage.get(HELD_AS, "").endswith(TEXT):  # rows name them by their paths
        passed = {suffix: about for suffix, about in passed.items() if suffix not in FORMATS[IMAGE_FOLDER].suffixes}
    total = sum(number for number, _ in passed.values())
    if not total:
        return []
    kinds = sorted(passed.items(), key=lambda item: -item[1][0])
    named = [f"{number:,} {suffix or 'without a suffix'} ({first})" for suffix, (number, first) in kinds[:MAX_KINDS]]
    more = ", …" if len(kinds) > MAX_KINDS else ""
    files = "file of another kind is" if total == 1 else "files of other kinds are"
    return [f"{total:,} {files} left out: {', '.join(named)}{more}"]


def counted(rows: int, many: str = "have", one: str = "has") -> str:
    """A number of rows with its verb, as ``1,200 rows have``."""
    return f"1 row {one}" if rows == 1 else f"{rows:,} rows {many}"
