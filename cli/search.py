"""``clip-queue search``: a table on a terminal, else lines of rank, score, path and caption with tabs between."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clip_queue.bulk.search import contact_sheet as sheets
from clip_queue.bulk.search.index import Hit, Index
from clip_queue.bulk.search.query import embed_query
from clip_queue.cli.terminal import printable
from clip_queue.shared.errors import BadInput
from clip_queue.shared.models import NOTICES
from clip_queue.shared.settings import Settings
from clip_queue.sources.storage import read_bytes, split

CAPTION = 120  # characters of a caption that a table shows


def search(
    console: Console,
    errors: Console,
    settings: Settings,
    output: str,
    *,
    text: str | None,
    image: str | None,
    top: int,
    among: str | None,
    model: str | None,
    sheet: Path | None,
) -> None:
    """Search, print the hits to ``console`` and all else to ``errors``, write the sheet where one is asked for.

    Raises:
        ClipError: it cannot be searched, or not for this; the message says what to do.
        OSError: the output cannot be read, or the sheet not written.
    """
    picture = read_picture(image, settings.max_image_bytes) if image is not None else None
    index = Index(output, among)
    if sheet:
        sheets.check(sheet, index.plan.source, top)

    def say(line: str) -> None:
        errors.print(line, soft_wrap=True, highlight=False)

    if index.shards < index.plan.shards:
        say(f"[yellow]{index.shards:,} of {index.plan.shards:,} shards are finished: only they are searched[/]")
    with errors.status(f"loading {escape(index.model.name)}"):
        query = embed_query(index.model, text, picture, model, settings)
    begin = time.perf_counter()
    hits = index.nearest(query, top)
    seconds = time.perf_counter() - begin
    show(console, hits)
    if console.is_terminal or not hits:
        say(f"[dim]{len(hits):,} of {index.rows:,} rows, by their {index.among}, in {seconds:.2f} s[/]")
    if notice := NOTICES.get(index.model.name):
        say(f"[dim]{escape(notice)}[/]")
    if sheet:
        title = text if text is not None else f"like {Path(image or '').name}"
        note = f"{len(hits):,} of {index.rows:,} rows by the cosine of their {index.among}, {index.model.name}"
        with errors.status("making the sheet"):
            load = sheets.loader(index.plan.source, settings)
            sheets.save(sheets.contact_sheet(hits, load, title, note), sheet)
        say(f"the sheet is {escape(str(sheet))}")


def show(console: Console, hits: Sequence[Hit]) -> None:
    if not console.is_terminal:
        for hit in hits:
            fields = (str(hit.rank), f"{hit.score:.6f}", printable(hit.image_path or ""), printable(hit.caption or ""))
            console.file.write("\t".join(fields) + "\n")  # rich would make spaces of tabs
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    paths, captions = any(hit.image_path for hit in hits), any(hit.caption for hit in hits)
    if paths:
        table.add_column("path", overflow="fold")
    if captions:
        table.add_column("caption", overflow="fold")
    for hit in hits:
        row = [str(hit.rank), f"[bold]{hit.score:.4f}[/]"]
        if paths:
            row.append(escape(printable(hit.image_path or "")))
        if captions:
            row.append(f"[dim]{escape(shortened(hit.caption or ''))}[/]")
        table.add_row(*row)
    console.print(table)


def shortened(caption: str) -> str:
    """A caption on one line, cut where it is long."""
    line = printable(" ".join(caption.split()))
    return line if len(line) <= CAPTION else line[: CAPTION - 1].rstrip() + "…"


def read_picture(url: str, limit: int) -> bytes:
    """The picture to search for; a path or a URL. Raises :class:`BadInput`."""
    try:
        protocol, path = split(url)
        return read_bytes(protocol, os.fsencode(path), limit)
    except OSError as error:
        raise BadInput(f"{url} cannot be read: {error.strerror or error}") from error
