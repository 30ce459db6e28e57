"""What tars hold, by a look at some of their rows: whether images and captions, and which columns of their JSON."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from clip_queue.shared.errors import BadInput
from clip_queue.sources.columns import (
    MAYBE,
    UNREAD,
    WANTED,
    check_wanted,
    infer,
    is_wanted,
    listed,
    with_wanted,
)
from clip_queue.sources.columns import TEXTS as TEXT_NAMES
from clip_queue.sources.formats.archives import archive_of
from clip_queue.sources.formats.samples import Sample, Wanted, samples
from clip_queue.sources.formats.tars import BrokenTar
from clip_queue.sources.source import (
    TEXTS,
    Source,
    SourceError,
)
from clip_queue.sources.storage import LOCAL, display, opened, reason

T = TypeVar("T")

SAMPLE_ROWS = 100  # rows that tell what the tars hold
LOOK_ROWS = 500_000  # rows in which images or captions are looked for that those lack
MAX_NAMES = 10_000  # suffixes and JSON keys that are remembered
SAMPLE_TARS = 8  # tars that are tried until one has a row
THREADS = 8  # tars that are looked at at once


def completed(source: Source, protocol: str, paths: list[bytes], max_image_bytes: int) -> Source:
    """``source``, completed by the first rows of the first tar that has any, and of more tars as long as there may come
    what is not in those before.

    What the first rows of all tars lack is looked for in the rest of them: in every row if it is asked for; else, in
    tars of this machine, in the next :data:`LOOK_ROWS` rows.

    Raises:
        SourceError: no row can be read, or there is nothing to embed, or not what is asked for.
    """
    wanted = Wanted.of(source.image_column, source.text_column)
    reasons: list[str] = []
    own: list[dict[str, Any]] = []
    names: dict[str, None] = {}  # of all own columns, in order
    full = 0  # tars with a row
    there = _There()

    def enough() -> bool:
        return (there.images or source.images is False) and (there.captions or source.texts is False)

    for path, (first, fault) in _each(paths, partial(_first, protocol, max_image_bytes, wanted)):
        if not first:
            reasons.append(f"{display(path)}: {fault}")
            if not there.seen and len(reasons) == SAMPLE_TARS:
                break
        values = []
        for sample in first:
            here = there.add(sample)
            values += [sample.own(each) for each in here]
        own = own or values
        names.update(dict.fromkeys(name for row in values for name in row))
        full += bool(first)
        if enough() and (full >= SAMPLE_TARS or names.keys() >= {*source.storage.get(WANTED, ())}):
            break
    if not there.seen:
        raise SourceError(f"no row can be read of {source.shown}: {'; '.join(reasons)}")
    asked = bool(source.images or source.texts or source.image_column or source.text_column)
    if not enough() and (asked or protocol == LOCAL):
        rows = 0
        for _, more in _each(paths, partial(_whole, protocol, wanted, None if asked else LOOK_ROWS)):
            there.join(more)
            rows += more.rows
            if enough() or (not asked and rows >= LOOK_ROWS):
                break
    check_wanted(source, [*names, wanted.key])
    has = f"which have: {listed(sorted(map(display, there.seen)))}"
    for column, kind, found in (
        (source.image_column, "image", there.images),
        (source.text_column, "text", there.captions),
    ):
        if column and not found:
            raise SourceError(f"there is no {kind} column {column!r} in the rows of {source.shown}, {has}")
    if source.images and not there.images:
        raise SourceError(f"images are asked for, and no row of {source.shown} has one, {has}")
    if source.texts and not there.captions:
        raise SourceError(
            f"texts are asked for, and no row of {source.shown} has a caption (NAME.txt, or in NAME.json)"
        )
    images = there.images if source.images is None else source.images
    texts = there.captions if source.texts is None else source.texts
    if not images and not texts:
        raise SourceError(
            f"nothing that is wanted of them is in the first rows of {source.shown}, {has}: name one with "
            "--image-column or --text-column"
        )
    maybe = {TEXTS: there.like_texts()} if source.texts is None and not texts else {}
    return replace(
        source,
        images=images,
        texts=texts,
        columns=source.columns or with_wanted(source, infer(wanted_columns(source, row) for row in own), names),
        storage={
            **source.storage,
            MAYBE: maybe,
            UNREAD: [end for end in there.unread(wanted) if end not in maybe.get(TEXTS, ())],
        },
    )


def wanted_columns(source: Source, own: dict[str, Any]) -> dict[str, Any]:
    """The own columns of a row that the metadata keep; its key names it, and stays."""
    return {name: value for name, value in own.items() if name == "key" or is_wanted(source, name)}


@dataclass
class _There:
    """What samples have: images, captions, and the suffixes and JSON keys that were seen."""

    images: bool = False
    captions: bool = False
    seen: set[bytes] = field(default_factory=set)
    rows: int = 0

    def add(self, sample: Sample) -> list[dict[str, Any]]:
        """Count a sample; the JSON of its rows. Broken ones will be their rows' errors."""
        self.rows += 1
        self.images = self.images or bool(sample.images)
        found = []
        for _, stem in sample.rows(images=True):
            values: dict[str, Any] = {}
            with contextlib.suppress(BadInput):
                values = sample.values(stem)
                self.captions = sample.caption(stem, values) is not None or self.captions
            found.append(values)
        if len(self.seen) < MAX_NAMES:
            self.seen |= sample.suffixes
            self.seen |= {f"json.{key}".encode(errors="replace") for values in found for key in values}
        return found

    def join(self, other: _There) -> None:
        self.images, self.captions = self.images or other.images, self.captions or other.captions
        self.seen |= other.seen

    def like_texts(self) -> list[str]:
        """What may be captions, by its name."""
        names = {name: name.removeprefix("json.").lower() for name in map(display, sorted(self.seen))}
        return [name for name, end in names.items() if end.partition(".")[0] in TEXT_NAMES or end.endswith(".txt")]

    def unread(self, wanted: Wanted) -> list[str]:
        """The suffixes of members that are not read."""
        return [display(name) for name in sorted(self.seen) if not name.startswith(b"json.") and not wanted.kind(name)]


def _whole(protocol: str, wanted: Wanted, most: int | None, path: bytes) -> _There:
    """What a tar has, up to where it breaks, or ``most`` rows, or until it has both images and captions."""
    there = _There()
    with contextlib.suppress(BrokenTar, OSError), opened(protocol, path) as (file, size):
        for sample in islice(samples(archive_of(file, size), images=False, max_image_bytes=0, wanted=wanted), most):
            there.add(sample)
            if there.images and there.captions:
                break
    return there


def _each(paths: list[bytes], look: Callable[[bytes], T]) -> Iterator[tuple[bytes, T]]:
    """What a look at each tar finds, in order, some tars ahead."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="tars") as pool:
        waiting: deque[tuple[bytes, Future[T]]] = deque()
        try:
            for path in paths:
                waiting.append((path, pool.submit(look, path)))
                if len(waiting) > THREADS:
                    path, found = waiting.popleft()
                    yield path, found.result()
            while waiting:
                path, found = waiting.popleft()
                yield path, found.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _first(protocol: str, max_image_bytes: int, wanted: Wanted, path: bytes) -> tuple[list[Sample], str]:
    """A tar's first rows, without their images' bytes, and why there are no more."""
    found: list[Sample] = []
    try:
        with opened(protocol, path) as (file, size):
            rows = samples(archive_of(file, size), images=False, max_image_bytes=max_image_bytes, wanted=wanted)
            for sample in islice(rows, SAMPLE_ROWS):
                found.append(sample)  # noqa: PERF402 - if the tar breaks, the rows before are kept
    except BrokenTar as error:
        return found, f"broken at byte {error.at} ({error.what})"
    except OSError as error:
        return found, reason(error)
    return found, "no rows"
