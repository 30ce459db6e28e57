"""A first look at a source: its first rows (``limit``), some of them drawn by chance (``sample``), or both.

What is left out is left out of the plan, so a run that is resumed embeds the same rows. Rows are drawn where the plan
can name single rows. In tars it cannot, so whole tars are drawn; and to end a limit in the middle of one, tars are read
up to there, once, to count their rows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import islice

from clip_queue.bulk.output.manifest import PlanOptions
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.looking import go_on
from clip_queue.sources.source import Piece, Planned, Shard, Source

_LINES = re.compile(r"(\d+)\+(\d+)")  # a piece of lines: the number of the first row, and how many there are


def plan_shards(source: Source, options: PlanOptions, shard_size: int, settings: Settings) -> Planned:
    """The source completed, and the shards of what ``options`` ask for. Errors are those of the registry's."""
    if not options.is_first_look:
        return registry.plan_shards(source, shard_size, settings)
    completed, rows = registry.plan_shards(source, 1, settings)
    if options.sample is not None:
        rows = _drawn(rows, options.sample, options.seed)
    if options.limit is not None:
        rows = _limited(completed, rows, options.limit, settings)
    return completed, _merged(rows, shard_size)


def _drawn(rows: Iterator[Shard], share: float, seed: int) -> Iterator[Shard]:
    """Each of ``rows`` with the probability ``share``; if that leaves none, the one that came nearest."""
    draw = random.Random(seed).random
    best: tuple[float, Shard] | None = None
    some = False
    for row in rows:
        go_on()
        at = draw()
        if at < share:
            some = True
            yield row
        elif not some and (best is None or at < best[0]):
            best = at, row
    if not some and best:
        yield best[1]


def _limited(source: Source, rows: Iterator[Shard], limit: int, settings: Settings) -> Iterator[Shard]:
    """The first ``limit`` rows. A shard of which only reading tells how many rows it has is counted, and may be cut:
    then ``Shard.rows`` are the rows of it that are asked for."""
    for shard in rows:
        go_on()
        count = shard.rows
        if count is None:
            count = 0
            for _ in islice(registry.read(source, shard.pieces, settings), limit):
                go_on()
                count += 1
        count = min(count, limit)
        if count:
            yield Shard(shard.pieces, count)
        limit -= count
        if not limit:
            return


def _merged(rows: Iterator[Shard], size: int) -> Iterator[Shard]:
    """Shards of ``size`` rows out of those of one row. Containers that are planned whole stay shards of their own."""
    pieces: list[Piece] = []
    counts: list[int | None] = []
    for row in rows:
        if row.rows != 1 and any(piece.start < 0 for piece in row.pieces):
            if pieces:
                yield Shard(pieces, _sum(counts))
                pieces, counts = [], []
            yield row
            continue
        for piece in row.pieces:
            following = _joined(pieces[-1], piece) if pieces else None
            if following:
                pieces[-1] = following
            else:
                pieces.append(piece)
        counts.append(row.rows)
        if len(counts) == size:
            yield Shard(pieces, _sum(counts))
            pieces, counts = [], []
    if pieces:
        yield Shard(pieces, _sum(counts))


def _sum(counts: list[int | None]) -> int | None:
    """The rows of a shard: a row of a table may be several, of which only reading tells how many."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _joined(a: Piece, b: Piece) -> Piece | None:
    """Two ranges of a file as one, if the second begins where the first ends."""
    if a.path != b.path or a.stop != b.start or a.start < 0:
        return None
    if a.note == b.note == "":
        return Piece(a.path, a.start, b.stop, a.size)
    then, here = _LINES.fullmatch(a.note), _LINES.fullmatch(b.note)
    if not then or not here:
        return None
    return Piece(a.path, a.start, b.stop, a.size, f"{then[1]}+{int(then[2]) + int(here[2])}")
