"""``clip-queue search``: a table on a terminal, else lines of rank, score, path and caption, separated by tabs, or of
JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from clip_queue.bulk.run.display import LINE_INTERVAL
from clip_queue.bulk.search import contact_sheet as sheets
from clip_queue.bulk.search.index import HITS_AT_ONCE, TOP, Hit, Index
from clip_queue.bulk.search.query import embed_query
from clip_queue.cli.terminal import print_line, printable
from clip_queue.shared.errors import BadInput
from clip_queue.shared.models import NOTICES
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import as_json as json_of
from clip_queue.sources.storage import read_bytes, split

MAX_CAPTION = 120  # most characters of a caption in a table


def search(
    console: Console,
    errors: Console,
    settings: Settings,
    output: str,
    *,
    text: str | None,
    image: str | None,
    top: int | None,
    among: str | None,
    model: str | None,
    sheet: Path | None,
    filter: str | None = None,
    as_json: bool = False,
    vectors: bool = False,
    near_duplicates: float | None = None,
    exact: bool = False,
) -> None:
    """Search an output and print the hits.

    Args:
        console: gets the hits.
        errors: gets everything else.
        output: the folder that ``embed`` has written; a path or a URL.
        text: the text to search for.
        image: the path or URL of the image to search for; exactly one of ``text`` and ``image`` is given.
        top: most hits; None: :data:`TOP`.
        among: ``images`` or ``texts``; None: images if there are any.
        model: the model as ``NAME=SOURCE``; None: as the manifest says.
        sheet: the file to write a contact sheet to.
        filter: a condition on the rows' metadata, an SQL expression.
        as_json: print a line of JSON a hit, wherever that goes.
        vectors: with the hits' vectors; only as JSON.
        near_duplicates: instead of text and image, print the rows that have another one that near, a cosine.
        exact: compare every row, also where there is an index.

    Raises:
        ClipError: the output cannot be searched, or not for this query. The message says what to do.
        OSError: the output cannot be read, or the sheet cannot be written.
    """
    if vectors and not as_json:
        raise BadInput("--vectors goes with --json")
    if near_duplicates is not None and any(each is not None for each in (text, image, sheet, top, model)):
        raise BadInput("--near-duplicates goes without a text, --image, --sheet, --top and --model")
    top = TOP if top is None else top
    encoded = read_image(image, settings.max_image_bytes) if image is not None else None
    index = Index(output, among, filter)
    if sheet:
        sheets.check(sheet, index.plan.source, top)
    if index.shards < index.plan.shards:
        missing = "the run, or parts of it, are missing still"
        finished = f"{index.shards:,} of {index.plan.shards:,} shards are finished"
        print_line(errors, f"[yellow]{finished}: only they are searched; {missing}[/]")
    if index.notice and not exact and near_duplicates is None:
        print_line(errors, f"[yellow]{escape(index.notice)}[/]")
    print_hits = partial(show, console, as_json=as_json, word="rank" if near_duplicates is None else "group")
    if near_duplicates is not None:
        with share_display(errors, "comparing") as show_share:
            found = index.near_duplicates(near_duplicates, show_share, vectors=vectors)
            hits = list(islice(found, HITS_AT_ONCE))
        if not hits:
            print_line(errors, f"[dim]none of {index.rows:,} rows has another one that near[/]")
        while hits:  # there may be millions
            print_hits(hits)
            hits = list(islice(found, HITS_AT_ONCE))
        return
    with errors.status(f"loading {escape(index.model.name)}"):
        query = embed_query(index.model, text, encoded, model, settings)
    begin = time.perf_counter()
    hits = index.nearest(query, top, vectors=vectors, exact=exact)
    seconds = time.perf_counter() - begin
    print_hits(hits)
    if console.is_terminal or not hits:
        print_line(errors, f"[dim]{len(hits):,} of {index.rows:,} rows, by their {index.among}, in {seconds:.2f} s[/]")
    if notice := NOTICES.get(index.model.name):
        print_line(errors, f"[dim]{escape(notice)}[/]")
    if sheet:
        title = text if text is not None else f"like {Path(image or '').name}"
        note = f"{len(hits):,} of {index.rows:,} rows by the cosine of their {index.among}, {index.model.name}"
        with errors.status("making the sheet"):
            with sheets.loader(index.plan.source, settings) as load:
                made = sheets.contact_sheet(hits, load, title, note)
            sheets.save(made, sheet)
        print_line(errors, f"the sheet is {escape(str(sheet))}")


def build_index(errors: Console, output: str, among: str | None) -> None:
    """Build or complete the index of an output. Raises :class:`ClipError` and :class:`OSError`."""
    index = Index(output, among)
    begin = time.perf_counter()
    with share_display(errors, "indexing") as show_share:
        added = index.build_index(show_share)
    seconds = time.perf_counter() - begin
    print_line(errors, f"{added:,} of {index.rows:,} rows added to the index of {index.among}, in {seconds:.1f} s")


def show(console: Console, hits: Sequence[Hit], *, as_json: bool = False, word: str = "rank") -> None:
    """Print hits as lines of JSON, or as a table on a terminal, else as lines with tabs. ``word``: a rank's name."""
    if as_json:
        for hit in hits:
            console.file.write(f"{to_json(hit, word)}\n")
        return
    if not console.is_terminal:
        for hit in hits:
            fields = (str(hit.rank), f"{hit.score:.6f}", printable(hit.image_path or ""), printable(hit.caption or ""))
            console.file.write("\t".join(fields) + "\n")  # rich would replace tabs by spaces
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("#" if word == "rank" else word, justify="right", no_wrap=True)
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


def to_json(hit: Hit, word: str = "rank") -> str:
    """A hit on one line. ``metadata`` are the source's own columns; bytes in them are text, NaN is null."""
    value = {
        word: hit.rank,
        "score": round(hit.score, 6),
        "shard": hit.shard,
        "row": hit.row,
        "image_path": hit.image_path,
        "caption": hit.caption,
        "metadata": hit.columns,
    }
    if hit.vector is not None:
        value["vector"] = hit.vector.tolist()
    return json_of(value) or "null"


@contextmanager
def share_display(console: Console, what: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on a terminal, else a line every few seconds; the function gets the share that is done."""
    if console.is_terminal:
        columns = (TextColumn(what), BarColumn(bar_width=None), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=1.0)
            yield lambda share: bar.update(task, completed=share)
        return
    last = time.monotonic()

    def show(share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_INTERVAL:
            last = time.monotonic()
            print_line(console, f"{what}: {share:.0%}")

    yield show


def shortened(caption: str) -> str:
    """A caption on one line, cut after :data:`MAX_CAPTION` characters."""
    line = printable(" ".join(caption.split()))
    return line if len(line) <= MAX_CAPTION else line[: MAX_CAPTION - 1].rstrip() + "…"


def read_image(url: str, limit: int) -> bytes:
    """The encoded image at a path or a URL, cut after ``limit`` + 1 bytes. Raises :class:`BadInput`."""
    try:
        protocol, path = split(url)
        return read_bytes(protocol, os.fsencode(path), limit)
    except OSError as error:
        raise BadInput(f"{url} cannot be read: {error.strerror or error}") from error
