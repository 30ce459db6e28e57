"""What is asked for, and the plan that comes of it before anybody is asked to do it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from clip_queue.bulk.output import plan_file as plans
from clip_queue.bulk.output.layout import Options, Output, Plan
from clip_queue.bulk.output.shard_job import OutputError, explained
from clip_queue.bulk.run.workers import NotBegun
from clip_queue.shared.workers import ModelInfo
from clip_queue.sources import reader
from clip_queue.sources import storage as files
from clip_queue.sources.source import Format, Source, SourceError

BATCH_CUDA = 256  # rows a forward pass
BATCH_CPU = 32
BATCH_BESIDE = 8  # on a CPU whose workers may have requests as well: what one of those may have to wait for

FEW = 16  # shards: a source with fewer is cut smaller, so that there is work for every worker to the end
LEAST = 250  # rows that a shard is not cut below


@dataclass(frozen=True)
class Asked:
    """What was asked for; None: as it is by default, or as the run that is resumed has it."""

    source: Source
    shard_size: int | None = None
    dtype: str | None = None
    normalize: bool | None = None
    batch_size: int | None = None


def as_asked(
    url: str,
    format: str | None,
    image_column: str | None,
    text_column: str | None,
    images: bool | None,
    texts: bool | None,
) -> Source:
    """A source as far as the caller knows it."""
    try:
        kind = Format(format) if format else reader.guess(url)
    except ValueError:
        raise SourceError(f"format {format!r} is not known: use one of {', '.join(Format)}") from None
    return Source(files.absolute(url), kind, image_column, text_column, images, texts)


def options(asked: Asked, default: Options) -> Options:
    """``default`` with what was asked for."""
    given = {name: getattr(asked, name) for name in ("shard_size", "dtype", "normalize", "batch_size")}
    return replace(default, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Draft:
    """A plan that waits for its model."""

    asked: Asked
    source: Source
    shards: int
    rows: int | None

    @classmethod
    def make(cls, where: Output, asked: Asked, say: Callable[[str], None], told_to_stop: Callable[[], bool]) -> Draft:
        """Look at the source and write the plan's pieces."""
        said = time.monotonic()

        def seen(shards: int, rows: int) -> None:
            nonlocal said
            if told_to_stop():
                raise NotBegun("stopped while it was planning")
            if time.monotonic() - said > 2:
                said = time.monotonic()
                say(f"planning: {rows:,} rows in {shards:,} shards so far")

        def cut(size: int) -> Draft:
            source, shards = reader.plan(asked.source, size)
            try:
                count, rows = plans.write(where, shards, seen)
            except OSError as error:
                raise OutputError(explained(error)) from error
            return cls(replace(asked, shard_size=size), source, count, rows)

        draft = cut(asked.shard_size or Options().shard_size)
        smaller = asked.shard_size or smaller_shards(draft.rows)
        return draft if smaller == draft.asked.shard_size else cut(smaller)

    def plan(self, info: ModelInfo, device: str, *, beside: bool) -> Plan:
        """``beside``: the workers may have requests as well."""
        on_cuda = device.partition(":")[0] == "cuda"
        default = replace(Options(), batch_size=BATCH_CUDA if on_cuda else BATCH_BESIDE if beside else BATCH_CPU)
        return Plan(secrets.token_hex(8), self.source, info, options(self.asked, default), self.shards, self.rows)


def smaller_shards(rows: int | None) -> int:
    """Rows a shard of a source with so many, where nobody said: the default, or less."""
    default = Options().shard_size
    return default if rows is None else min(default, max(LEAST, -(-rows // FEW)))


@dataclass(frozen=True)
class Dry:
    """What a run would do."""

    source: Source
    shards: int
    rows: int | None
    first: list[str]  # names of the first rows' files, or containers


def dry_run(
    source: str,
    *,
    format: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    images: bool | None = None,
    texts: bool | None = None,
    shard_size: int | None = None,
) -> Dry:
    """Look at a source and write nothing. Arguments and errors as :func:`embed`."""
    asked = as_asked(source, format, image_column, text_column, images, texts)
    completed, shards = reader.plan(asked, shard_size or Options().shard_size)
    count, rows, known, first = 0, 0, True, list[str]()
    for shard in shards:
        first = first or [piece.path.decode("utf-8", "backslashreplace") for piece in islice(shard.pieces, 3)]
        count, rows, known = count + 1, rows + (shard.rows or 0), known and shard.rows is not None
    if known and not shard_size and (smaller := smaller_shards(rows)) < Options().shard_size:
        count = sum(1 for _ in reader.plan(asked, smaller)[1])
    return Dry(completed, count, rows if known else None, first)
