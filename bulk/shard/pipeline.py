"""The pipeline of a shard: reading, decoding and the forward pass run side by side, in order, with bounded queues.

::

    source ─► load ───► decode ───► batch of B ───► batcher (bulk lane) ─► in order to the writer
    (thread)  (pool)    (pool)      (this thread)

Which rows share a batch depends on the rows alone, never on time: a shard that is done again is the same, bit by bit.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import TypeVar

from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.shard.batch import Batch
from clip_queue.bulk.shard.halves import Embedded, Prepared, filled, take_text
from clip_queue.bulk.shard.prefetch import Prefetcher, ReadTimeout
from clip_queue.bulk.shard.readers import Readers, left_behind
from clip_queue.shared.errors import BadImage, ClipError
from clip_queue.shared.lane import Lane
from clip_queue.shared.vectors import Pixels
from clip_queue.sources.source import IMAGE_HALF, Row, SourceAway, SourceError
from clip_queue.sources.storage import is_barred
from clip_queue.worker.inference.engine import InferenceEngine

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_INTERVAL = 0.25  # seconds between checks whether the shard was abandoned
IN_FLIGHT = 3  # batches handed to the batcher before the first is waited for


class Abandoned(Exception):
    """The shard was taken away from this worker, or cancelled."""


InFlightBatch = tuple[list[Prepared], dict[str, Batch]]


class Pipeline:
    """Embeds the rows of one shard. Once ``should_stop`` returns True, :class:`Abandoned` is raised."""

    def __init__(self, engine: InferenceEngine, plan: RunPlan, should_stop: Callable[[], bool]) -> None:
        self._engine, self._plan = engine, plan
        self._over = threading.Event()
        self._should_stop: Callable[[], bool] = lambda: self._over.is_set() or should_stop()
        self._settings = engine.settings
        self._model, self._passes = engine.models[plan.model.name], engine.passes[plan.model.name]
        self._readers = Readers(self._settings.read_threads)
        self.waited = {"reading": 0.0, "decoding": 0.0, "forward": 0.0}  # seconds that the other stages waited for each

    def embed(self, rows: Iterator[Row]) -> Iterator[Embedded]:
        """Embed every row of ``rows``; each comes back embedded or failed.

        Raises:
            SourceAway: its store is.
            SourceError: the source gives nothing any more, or nothing of it can be had; or too many reads of earlier
                shards hang.
            Exception: what ``rows`` raises.
        """
        left_behind.check()
        size = self._plan.options.batch_size
        batch: list[Prepared] = []
        in_flight: deque[InFlightBatch] = deque()
        try:
            with Prefetcher(
                map(self._begin, rows), 2 * size + 2 * self._settings.read_threads, "prefetch"
            ) as prefetcher:
                for item in self._prepared(prefetcher):
                    if isinstance(item, Embedded):
                        yield item
                        continue
                    batch.append(item)
                    if len(batch) == size:
                        in_flight.append(self._launch(batch))
                        batch = []
                    if len(in_flight) > IN_FLIGHT:
                        yield from self._collect(in_flight.popleft())
            if batch:
                in_flight.append(self._launch(batch))
            while in_flight:
                yield from self._collect(in_flight.popleft())
        finally:
            self._over.set()  # what was read ahead is not decoded, and what was handed over is not computed
            self._readers.stop()

    # Reading and decoding

    def _begin(self, row: Row) -> Prepared:
        """Start to read and decode a row; called in the prefetcher's thread."""
        item = Prepared(row)
        if row.error is not None:
            item.ready.set_exception(row.error)
        elif callable(row.image) and self._plan.source.images:
            self._readers.submit(lambda: self._load(item))
        else:
            self._loaded(item, None if callable(row.image) else row.image)
        return item

    def _load(self, item: Prepared) -> None:
        load = item.row.image
        try:
            if self._should_stop() or not callable(load):
                raise Abandoned
            data = load()
        except (SourceError, Abandoned) as error:
            item.ready.set_exception(error)
        except ClipError as error:
            self._without_image(item, error)
        except OSError as error:
            self._without_image(item, BadImage.because(f"It cannot be read: {error.strerror or error}."))
        except Exception as error:  # a bug: the image fails, and the log says where
            log.exception("an image could not be read")
            self._without_image(item, BadImage.because(f"It cannot be read ({type(error).__name__})."))
        else:
            self._loaded(item, data)

    def _without_image(self, item: Prepared, error: ClipError) -> None:
        item.row.faults[IMAGE_HALF] = error
        self._loaded(item, None)

    def _loaded(self, item: Prepared, data: bytes | None) -> None:
        item.loaded = True
        item.row.image = None  # the encoded image is freed once it is decoded
        if data is None or not self._plan.source.images:
            self._engine.decoders.submit(Lane.BULK, lambda: self._prepare(item, None))
        else:
            decoding = self._engine.decode(self._model, Lane.BULK, data, self._should_stop)
            decoding.add_done_callback(lambda pixels: self._prepare(item, pixels))

    def _prepare(self, item: Prepared, pixels: Future[Pixels] | None) -> None:
        """Make a row ready whose image has been decoded; in the thread that did. It fails if neither half is left."""
        try:
            if self._should_stop():
                raise Abandoned
            faults = item.row.faults
            if self._plan.source.images:
                try:
                    if pixels is None:
                        raise faults.get(IMAGE_HALF) or BadImage.because("The row has no image.")
                    item.pixels = pixels.result()
                except ClipError as error:
                    faults[IMAGE_HALF] = error
            take_text(item, self._plan, self._model, self._settings.max_text_chars)
        except (ClipError, Abandoned) as error:
            item.ready.set_exception(error)
        except CancelledError:
            item.ready.set_exception(Abandoned())
        except Exception as error:  # a bug: the row fails, and the log says where
            log.exception("a row could not be prepared")
            item.ready.set_exception(ClipError(f"The row could not be prepared ({type(error).__name__})."))
        else:
            item.ready.set_result(None)

    def _prepared(self, prefetcher: Prefetcher[Prepared]) -> Iterator[Prepared | Embedded]:
        """The rows in order, each when it is ready or has failed."""
        limit, late = self._settings.read_timeout, 0
        while True:
            began = time.monotonic()
            try:
                item = prefetcher.next(limit, self._check)
            except OSError as error:
                kind = SourceAway if is_barred(error) else SourceError
                raise kind(f"the source cannot be read: {error.strerror or error}") from error
            except ReadTimeout:
                raise SourceError(f"the source gave no row for {limit:g} s (setting read_timeout)") from None
            finally:
                self.waited["reading"] += time.monotonic() - began
            if item is None:
                return
            try:
                self._wait(item.ready, "decoding", lambda item=item: item.loaded)  # type: ignore[misc]
                late = 0
                yield item
            except SourceError:  # the source is to blame, not this row
                raise
            except ClipError as error:
                yield Embedded(failed=(item.row, error))
            except ReadTimeout:
                late += 1
                if late > self._settings.read_threads:  # every thread hangs
                    reason = f"{late} reads in a row took more than {limit:g} s (setting read_timeout)"
                    raise SourceError(reason) from None
                yield self._given_up(item.row, BadImage.because(f"It could not be read within {limit:g} s."))

    def _given_up(self, row: Row, error: ClipError) -> Prepared | Embedded:
        """A row whose image is not waited for any more: a thread may still hold it."""
        item = Prepared(replace(row, image=None, faults={**row.faults, IMAGE_HALF: error}), loaded=True)
        try:
            take_text(item, self._plan, self._model, self._settings.max_text_chars)
        except ClipError:
            return Embedded(failed=(item.row, error))
        return item

    # The forward pass

    def _launch(self, batch: list[Prepared]) -> InFlightBatch:
        items: dict[str, Batch] = {}
        if images := [item.pixels for item in batch if item.pixels is not None]:
            stack = self._model.stack(images)
            items["image"] = Batch(self._passes.dataset_images, stack, len(images), self._should_stop)
        if texts := [item.tokens for item in batch if item.tokens is not None]:
            items["text"] = Batch(self._passes.dataset_texts, texts, len(texts), self._should_stop)
        for item in items.values():
            self._put(item)
        return batch, items

    def _put(self, item: Batch) -> None:
        """Hand a batch over. Small batches fill the lane, so it waits for room."""
        while True:
            self._check()
            try:
                return self._engine.batcher.put(item, POLL_INTERVAL)
            except queue.Full:
                continue

    def _collect(self, launched: InFlightBatch) -> Iterator[Embedded]:
        batch, items = launched
        try:
            found = {kind: self._wait(item.features, "forward") for kind, item in items.items()}
        except (Abandoned, ReadTimeout):
            raise
        except Exception as error:
            if len(batch) == 1:
                if not isinstance(error, ClipError):
                    error = ClipError(f"The model failed on this row ({type(error).__name__}).")
                yield Embedded(failed=(batch[0].row, error))
                return
            half = len(batch) // 2  # one of the rows is to blame
            for part in (batch[:half], batch[half:]):
                yield from self._collect(self._launch(part))
            return
        dimension = self._plan.model.dimension
        if self._plan.source.images:
            found["image"] = filled(found.get("image"), [item.pixels is not None for item in batch], dimension)
        if self._plan.source.texts:
            found["text"] = filled(found.get("text"), [item.tokens is not None for item in batch], dimension)
        yield Embedded([item.row for item in batch], found, cut=sum(item.cut for item in batch))

    # Waiting

    def _check(self) -> None:
        if self._should_stop():
            raise Abandoned

    def _wait(self, future: Future[T], stage: str, loaded: Callable[[], bool] = lambda: True) -> T:
        """A future's result.

        Raises:
            ReadTimeout: it was not ``loaded`` within ``read_timeout``.
            Exception: what the future holds.
        """
        began = time.monotonic()
        blamed = stage if loaded() else "reading"
        try:
            while True:
                try:
                    return future.result(POLL_INTERVAL)
                except CancelledError:
                    raise Abandoned from None
                except TimeoutError:
                    if future.done():
                        continue
                self._check()
                if not loaded() and time.monotonic() - began > self._settings.read_timeout:
                    raise ReadTimeout
        finally:
            self.waited[blamed] += time.monotonic() - began
