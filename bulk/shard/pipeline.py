"""Rows to vectors: reading, decoding and the forward pass side by side, in order, with a bounded number under way.

::

    source ─► load ───► decode ───► batch of B ───► batcher (bulk lane) ─► in order to the writer
    (thread)  (pool)    (pool)      (this thread)

Which rows share a batch depends on the rows alone, never on time: a shard that is done again is the same, bit by bit.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clip_queue.bulk.output.layout import Plan
from clip_queue.bulk.shard.batch import Batch
from clip_queue.bulk.shard.prefetch import Ahead, Slow
from clip_queue.shared.errors import BadImage, BadInput, ClipError, TextTooLong
from clip_queue.shared.job import Lane
from clip_queue.sources.source import Row, SourceAway, SourceError
from clip_queue.sources.storage import is_barred
from clip_queue.worker.executor.executor import Engine, die
from clip_queue.worker.inference.decode import decode
from clip_queue.worker.inference.thread_pool import DecodePool

Matrix = NDArray[np.float32]
T = TypeVar("T")

LOOK = 0.25  # seconds between looks whether the shard is wanted still
FLIGHTS = 3  # batches handed to the batcher before the first is waited for


class Abandoned(Exception):
    """The shard is no longer wanted."""


@dataclass(slots=True)
class Prepared:
    """A row on its way, then as the model takes it."""

    row: Row
    loaded: bool = False  # nothing more is read for it
    pixels: NDArray[np.uint8] | None = None
    tokens: NDArray[np.int64] | None = None
    ready: Future[None] = field(default_factory=Future)


@dataclass(slots=True)
class Mapped:
    """Rows that were embedded, in the source's order, with their vectors (n, dimension) by kind; or one that failed."""

    rows: list[Row] = field(default_factory=list)
    vectors: dict[str, Matrix] = field(default_factory=dict)
    failed: tuple[Row, ClipError] | None = None


Flight = tuple[list[Prepared], dict[str, Batch]]


class Mapper:
    """Maps the rows of one shard. ``wanted`` is asked all the time; once it says no, :class:`Abandoned` is raised."""

    def __init__(self, engine: Engine, plan: Plan, wanted: Callable[[], bool]) -> None:
        self._engine, self._plan, self._wanted = engine, plan, wanted
        self._settings = engine.settings
        self._clip = engine.clips[plan.model.name]
        self._readers: DecodePool | None = None
        self.waited = {"reading": 0.0, "decoding": 0.0, "forward": 0.0}  # seconds that all else waited for each

    def map(self, rows: Iterator[Row]) -> Iterator[Mapped]:
        """Every row of ``rows``, embedded or failed.

        Raises:
            SourceAway: its store is.
            SourceError: the source gives nothing any more, or nothing of it can be had.
            Exception: what ``rows`` raises.
        """
        size = self._plan.options.batch_size
        batch: list[Prepared] = []
        flights: deque[Flight] = deque()
        try:
            with Ahead(map(self._begin, rows), 2 * size + 2 * self._settings.read_threads, "read-ahead") as ahead:
                for item in self._prepared(ahead):
                    if isinstance(item, Mapped):
                        yield item
                        continue
                    batch.append(item)
                    if len(batch) == size:
                        flights.append(self._launch(batch))
                        batch = []
                    if len(flights) > FLIGHTS:
                        yield from self._land(flights.popleft())
            if batch:
                flights.append(self._launch(batch))
            while flights:
                yield from self._land(flights.popleft())
        finally:
            if self._readers:
                self._readers.stop(timeout=1)

    # Reading and decoding

    def _begin(self, row: Row) -> Prepared:
        """Send a row on its way; in the thread that reads ahead."""
        item = Prepared(row)
        if row.error is not None:
            item.ready.set_exception(row.error)
        elif callable(row.image) and self._plan.source.images:
            if self._readers is None:
                self._readers = DecodePool(self._settings.read_threads, fatal=die, name="read")
                self._readers.start()
            self._readers.submit(Lane.BULK, lambda: self._load(item))
        else:
            self._loaded(item, None if callable(row.image) else row.image)
        return item

    def _load(self, item: Prepared) -> None:
        load = item.row.image
        try:
            if not self._wanted() or not callable(load):
                raise Abandoned
            data = load()
        except ClipError as error:
            item.ready.set_exception(error)
        except OSError as error:
            item.ready.set_exception(BadImage.because(f"It cannot be read: {error.strerror or error}."))
        except Exception as error:  # whatever a remote store's client raises
            item.ready.set_exception(BadImage.because(f"It cannot be read ({type(error).__name__})."))
        else:
            self._loaded(item, data)

    def _loaded(self, item: Prepared, data: bytes | None) -> None:
        item.loaded = True
        item.row.image = None  # the encoded picture lives as long as its decoding
        self._engine.decoders.submit(Lane.BULK, lambda: self._prepare(item, data))

    def _prepare(self, item: Prepared, data: bytes | None) -> None:
        try:
            if not self._wanted():
                raise Abandoned
            source, limits = self._plan.source, self._settings
            if source.images:
                if data is None:
                    raise BadImage.because("The row has no image.")
                item.pixels = decode(
                    data,
                    self._clip.crop,
                    max_bytes=limits.max_image_bytes,
                    max_pixels=limits.max_image_pixels,
                    draft=self._clip.draft,
                )
            if source.texts:
                item.tokens = self._tokens(item.row.text)
        except (ClipError, Abandoned) as error:
            item.ready.set_exception(error)
        except Exception as error:
            item.ready.set_exception(ClipError(f"The row could not be prepared ({type(error).__name__})."))
        else:
            item.ready.set_result(None)

    def _tokens(self, text: str | None) -> NDArray[np.int64] | None:
        if text is None:
            if self._plan.source.images:
                return None
            raise BadInput("The row has no text.")
        if len(text) > (limit := self._settings.max_text_chars):
            raise TextTooLong(f"The text has {len(text)} characters, {limit} at most (setting max_text_chars).")
        return self._clip.tokenizer(text)

    def _prepared(self, ahead: Ahead[Prepared]) -> Iterator[Prepared | Mapped]:
        """Rows in order, as they get ready or fail."""
        limit, late = self._settings.read_timeout, 0
        while True:
            began = time.monotonic()
            try:
                item = ahead.next(limit, self._check)
            except OSError as error:
                kind = SourceAway if is_barred(error) else SourceError
                raise kind(f"the source cannot be read: {error.strerror or error}") from error
            except Slow:
                raise SourceError(f"the source gave no row for {limit:g} s (setting read_timeout)") from None
            finally:
                self.waited["reading"] += time.monotonic() - began
            if item is None:
                return
            try:
                self._wait(item.ready, "decoding", lambda item=item: item.loaded)  # type: ignore[misc]
                late = 0
                yield item
            except SourceError:  # what keeps this row back would keep back all of them
                raise
            except ClipError as error:
                yield Mapped(failed=(item.row, error))
            except Slow:
                late += 1
                if late > self._settings.read_threads:  # every thread hangs
                    reason = f"{late} reads in a row took more than {limit:g} s (setting read_timeout)"
                    raise SourceError(reason) from None
                yield Mapped(failed=(item.row, BadImage.because(f"It could not be read within {limit:g} s.")))

    # The forward pass

    def _launch(self, batch: list[Prepared]) -> Flight:
        items: dict[str, Batch] = {}
        if self._plan.source.images:
            stack = self._clip.stack([item.pixels for item in batch if item.pixels is not None])
            items["image"] = Batch(self._clip.embed_stack, stack, len(batch), self._wanted)
        if texts := [item.tokens for item in batch if item.tokens is not None]:
            items["text"] = Batch(self._clip.embed_texts, texts, len(texts), self._wanted)
        for item in items.values():
            self._engine.batcher.put(item)
        return batch, items

    def _land(self, flight: Flight) -> Iterator[Mapped]:
        batch, items = flight
        try:
            found = {kind: self._wait(item.features, "forward") for kind, item in items.items()}
        except (Abandoned, Slow):
            raise
        except Exception as error:
            if len(batch) == 1:
                reason = f"The model failed on this row ({type(error).__name__})."
                yield Mapped(failed=(batch[0].row, ClipError(reason)))
                return
            half = len(batch) // 2  # someone in here is to blame
            for part in (batch[:half], batch[half:]):
                yield from self._land(self._launch(part))
            return
        if self._plan.source.texts:
            full = np.zeros((len(batch), self._plan.model.dimension), dtype=np.float32)
            if "text" in found:
                full[[item.tokens is not None for item in batch]] = found["text"]
            found["text"] = full
        yield Mapped([item.row for item in batch], found)

    # Waiting

    def _check(self) -> None:
        if not self._wanted():
            raise Abandoned

    def _wait(self, future: Future[T], stage: str, loaded: Callable[[], bool] = lambda: True) -> T:
        """A future's result. Raises what it holds; :class:`Slow` if it is not ``loaded`` within ``read_timeout``."""
        began = time.monotonic()
        blamed = stage if loaded() else "reading"
        try:
            while True:
                try:
                    return future.result(LOOK)
                except CancelledError:
                    raise Abandoned from None
                except TimeoutError:
                    if future.done():
                        continue
                self._check()
                if not loaded() and time.monotonic() - began > self._settings.read_timeout:
                    raise Slow
        finally:
            self.waited[blamed] += time.monotonic() - began
