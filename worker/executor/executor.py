"""The engine of a worker process: takes deliveries, feeds their items through decoding to the batcher, answers.

::

    delivery ─► claim ─► run ─┬─ text ──► tokens ─┬─► batcher ─► run over ─► finish ─► reply list
                              └─ image ─► decode ─┘
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from PIL import Image

from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError, Unavailable
from clip_queue.shared.job import Answer, Inputs, Job, Lane, State
from clip_queue.shared.models import NOTICES, parse_models
from clip_queue.shared.settings import Settings, cores
from clip_queue.shared.store import Store
from clip_queue.worker.executor.execution import Row, Run, RunItem
from clip_queue.worker.executor.handlers import Work, load_work, refusal
from clip_queue.worker.executor.in_flight import Held
from clip_queue.worker.inference.batcher import Batcher
from clip_queue.worker.inference.clip_model import Clip, pick_device
from clip_queue.worker.inference.decode import decode
from clip_queue.worker.inference.text_cache import TextCache
from clip_queue.worker.inference.thread_pool import DecodePool

log = logging.getLogger(__name__)

SLOTS = 2  # deliveries of background or bulk work at once: one feeds while the other is being answered, or written
BACKGROUND_ITEMS = 256  # items of background work that a slot takes at a time
BACKGROUND_JOBS = 64


class Engine:
    """One a process. :meth:`deliver` runs in Celery's threads; all else is the engine's own."""

    def __init__(self, settings: Settings, worker_id: str) -> None:
        self.settings = settings
        self.id = worker_id
        self.device = pick_device(settings.device)
        self.clips = {name: Clip(spec, settings) for name, spec in parse_models(settings.models).items()}
        cuda = self.device.type == "cuda"
        batch = settings.batch_size or (256 if cuda else 32)
        background = settings.background_batch_size or (batch if cuda else min(8, batch))
        self._room_size = 4 * batch
        self.batcher = Batcher(
            {Lane.INTERACTIVE: batch, Lane.BACKGROUND: background, Lane.BULK: 1},  # of bulk, an item is a batch
            capacity=self._room_size,
            fatal=die,
            depth=1 if cuda else 0,
        )
        self.decoders = DecodePool(settings.decode_threads or cores(), fatal=die)
        # Items inside the engine, by lane: what bounds decoded pictures in memory.
        self._room = {lane: threading.BoundedSemaphore(self._room_size) for lane in Lane}
        self._slots = {lane: threading.BoundedSemaphore(SLOTS) for lane in Lane}
        self.work = load_work()
        self._alone = threading.Lock()
        self._cache = TextCache(settings.text_cache_size)
        self._store = Store.connect(settings)
        self.held = Held()
        self.draining = threading.Event()
        self.started = time.time()
        Image.MAX_IMAGE_PIXELS = settings.max_image_pixels  # Pillow's own guard, behind ours

    def start(self) -> None:
        for clip in self.clips.values():
            log.info("serving %s (%s, %s, %s)", clip.info.name, clip.info.source, clip.precision, self.device)
            if notice := NOTICES.get(clip.info.name):
                log.warning(notice)
        self.batcher.start()
        self.decoders.start()

    def stop(self) -> None:
        """After the last delivery has returned."""
        self.held.abandon()
        self.decoders.stop(timeout=5)
        self.batcher.stop(timeout=5)
        self._store.close()

    # Deliveries

    def deliver(self, model: str, lane: Lane, job_ids: list[str]) -> None:
        """A message came. Interactive: these jobs. Else: there is work in the line, if a slot is free."""
        if lane is Lane.INTERACTIVE:
            self._serve(job_ids)
            return
        # A message that finds no slot free does nothing: the jobs stand in line in the store, and each slot takes
        # from there as long as there is something. So such work never fills the threads.
        slots, serve = self._slots[lane], self._serve_whole if lane is Lane.BULK else self._serve
        while slots.acquire(blocking=False):
            try:
                while ids := self._next(model, lane):
                    serve(ids)
            finally:
                slots.release()
            if not self._next(model, lane):  # one that came between the last look and the release
                return

    def _next(self, model: str, lane: Lane) -> list[str]:
        if self.draining.is_set():
            return []
        jobs, items = (1, 1) if lane is Lane.BULK else (BACKGROUND_JOBS, BACKGROUND_ITEMS)
        return self._store.run(ops.waiting(model, lane, jobs, items))

    def _serve(self, job_ids: list[str]) -> None:
        """Work on jobs until each is answered, somebody else's, or given back.

        A job that has lost workers before makes its last attempt beside no other such job: whoever shared a lost
        worker with the job to blame is not failed with it.
        """
        for job_id in self._work(job_ids):
            with self._alone:
                if not self.draining.is_set():
                    self._work([job_id], alone=True)

    def _serve_whole(self, job_ids: list[str]) -> None:
        """Jobs of a kind that another package knows (:mod:`clip_queue.worker.executor.handlers`): done in this thread, start to end."""
        for job_id in job_ids:
            if self._do(job_id) == "alone":
                with self._alone:
                    if not self.draining.is_set():
                        self._do(job_id, alone=True)

    def _do(self, job_id: str, *, alone: bool = False) -> str:
        """Claim a job and do it; returns what came of the claim."""
        ours = True  # a claim whose reply is lost leaves a job that is ours, and that no thread knows of
        work: Work | None = None
        try:
            claim = self._store.run(ops.claim([job_id], self.id, self.settings.max_attempts, alone=alone))[0]
            ours = claim.job is not None
            if claim.job is None:
                return claim.reason
            self.held.claimed([job_id])
            inputs, begin = claim.inputs or self._store.run(ops.inputs(job_id)), self.work.get(claim.job.kind)
            if begin is None or inputs is None:
                ending: ops.Ending | None = refusal(claim.job)
            else:
                work = begin(claim.job, inputs, self)
                self.held.began(work)
                ending = work.run()
            if ending:
                self._finish([ending])
                ours = False
            return claim.reason
        finally:  # what is still ours is the heartbeat's to give back
            if work:
                self.held.ended([work])
            if ours:
                self.held.give_back([], [job_id])
            else:
                self.held.never_begun(job_id)

    def _work(self, job_ids: list[str], *, alone: bool = False) -> list[str]:
        """Claim, embed, answer; returns the ids left for their turn alone. Each job is answered when its own items
        are done, not when all are."""
        pending: dict[str, Run] = {}
        over: queue.SimpleQueue[Run] = queue.SimpleQueue()
        unbegun = list(job_ids)  # a claim whose reply is lost leaves jobs that are ours, and that no thread knows of
        try:
            claims = self._store.run(ops.claim(job_ids, self.id, self.settings.max_attempts, alone=alone))
            jobs = [(claim.job, claim.inputs) for claim in claims if claim.job]
            unbegun = [job.id for job, _ in jobs]
            self.held.claimed(unbegun)
            for job, inputs in jobs:
                run = self._begin(job, inputs, over.put)
                unbegun.remove(job.id)
                if run:
                    pending[job.id] = run
                    self._feed(run, lambda: self._answer(over, pending, wait=0))
                self._answer(over, pending, wait=0)
            while pending:
                self._answer(over, pending, wait=1.0)
        finally:
            # Only an error leaves something here: the heartbeat gives it back.
            for run in pending.values():
                run.abandon()
            self.held.give_back(list(pending.values()), unbegun)
        return [job_id for job_id, claim in zip(job_ids, claims, strict=True) if claim.reason == "alone"]

    def _begin(self, job: Job, inputs: Inputs | None, on_over: Callable[[Run], None]) -> Run | None:
        clip = self.clips.get(job.model)
        inputs = inputs or self._store.run(ops.inputs(job.id))
        if clip is None or inputs is None:
            # A message on the wrong queue, or inputs that the store has evicted or a cancellation removed.
            error = ClipError("The job's inputs are gone." if clip else "This worker does not serve the job's model.")
            self._finish([ops.Ending(job.id, State.FAILED, Answer(error=error.to_wire()))])
            self.held.never_begun(job.id)
            return None
        run = Run(job, inputs, clip, on_over)
        self.held.began(run)
        return run

    def _feed(self, run: Run, meanwhile: Callable[[], None]) -> None:
        """Send a run's items on their way, as room allows."""
        room = self._room[run.job.lane]
        for index, item in enumerate(run.inputs.items):
            while not room.acquire(timeout=0.02):
                meanwhile()
            if run.over:
                room.release()
                return
            if isinstance(item, str):
                self._text(run, index, item)
            else:
                self.decoders.submit(run.job.lane, self._image(run, index, item))

    def _text(self, run: Run, index: int, text: str) -> None:
        began, clip = time.monotonic(), run.clip
        room = self._room[run.job.lane]
        known = self._cache.get(clip.fingerprint, text)
        if known is not None:
            room.release()
            run.put(index, known, {"prepare": time.monotonic() - began, "wait": 0.0, "forward": 0.0})
            return
        try:
            tokens = clip.tokenizer(text)
        except Exception as error:  # a tokenizer's own errors too: they are this item's, not the thread's
            room.release()
            if not isinstance(error, ClipError):
                log.exception("a text could not be tokenised")
                error = ClipError(f"The text could not be tokenised ({type(error).__name__}).")
            run.fail(index, error)
            return

        def leave(row: Row | None) -> None:
            room.release()
            if row is not None:
                self._cache.put(clip.fingerprint, text, row)

        self.batcher.put(RunItem(run, index, clip.embed_texts, tokens, began, leave))

    def _image(self, run: Run, index: int, data: bytes) -> Callable[[], None]:
        room = self._room[run.job.lane]
        limits = self.settings

        def leave(_: Row | None) -> None:
            room.release()

        def task() -> None:
            began = time.monotonic()
            if run.over:
                leave(None)
                return
            try:
                pixels = decode(
                    data,
                    run.clip.crop,
                    max_bytes=limits.max_image_bytes,
                    max_pixels=limits.max_image_pixels,
                    draft=run.clip.draft,
                )
            except ClipError as error:
                leave(None)
                run.fail(index, error)
                return
            self.batcher.put(RunItem(run, index, run.clip.embed_images, pixels, began, leave))

        return task

    # Answers

    def _answer(self, over: queue.SimpleQueue[Run], pending: dict[str, Run], wait: float) -> None:
        """Answer, in one round trip, the runs that are over by now; wait for the first up to ``wait`` seconds."""
        runs: list[Run] = []
        try:
            runs.append(over.get(timeout=wait) if wait else over.get_nowait())
            while len(runs) < 64:
                runs.append(over.get_nowait())
        except queue.Empty:
            pass
        if endings := [run.ending() for run in runs if not run.abandoned]:
            self._finish(endings)
        for run in runs:
            pending.pop(run.job.id, None)
        self.held.ended(runs)

    def _finish(self, endings: list[ops.Ending]) -> None:
        """Tell the store, however long it is away: what is computed is not computed twice."""
        while True:
            try:
                self._store.run(ops.finish(endings, self.id))
                return
            except Unavailable as error:
                log.warning("answers wait: %s", error.message)
                if self.draining.wait(0.5):
                    raise


def die(error: BaseException) -> NoReturn:
    """End the process at once: what it holds is put back in line when its lease runs out."""
    log.critical("worker ends: %s: %s", type(error).__name__, error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(70)
