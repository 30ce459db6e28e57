"""A job in work: its items on their way through decoding and the batcher, and what came of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clip_queue.shared.errors import ClipError, Late
from clip_queue.shared.job import Answer, Inputs, Job, Kind, Lane, OnError, State
from clip_queue.shared.ops import Ending
from clip_queue.worker.inference.batcher import Forward

if TYPE_CHECKING:
    from clip_queue.worker.inference.clip_model import Clip

Row = NDArray[np.float32]  # (dimension,)


class Run:
    """Items report to a run from many threads; ``on_over`` is called exactly once, when it is over:

    all items are reported, or one failed and the job asked for no more, or its deadline passed, or it was
    :attr:`abandoned` (cancelled, taken over, given back). Once over, nothing more is spent on it.
    """

    def __init__(self, job: Job, inputs: Inputs, clip: Clip, on_over: Callable[[Run], None]) -> None:
        self.job = job
        self.inputs = inputs
        self.clip = clip
        self.over = False
        self.abandoned = False
        self._on_over = on_over
        self._lock = threading.Lock()
        self._rows: dict[int, Row] = {}
        self._errors: dict[int, ClipError] = {}
        self._timings: dict[str, float] = {}
        left = (job.deadline - job.started) / 1000  # both on the store's clock
        self._deadline = time.monotonic() + left if job.deadline else float("inf")

    @property
    def done(self) -> int:
        return len(self._rows)

    @property
    def failed(self) -> int:
        return len(self._errors)

    @property
    def late(self) -> bool:
        return time.monotonic() > self._deadline

    def put(self, index: int, row: Row, timings: dict[str, float]) -> None:
        """An item's features. The timings of the item that comes last stay: they add up to the job's time."""
        with self._lock:
            self._rows[index] = row
            self._timings = {"queue": (self.job.started - self.job.created) / 1000, **timings}
            last = self._end(self.done + self.failed == len(self.inputs.items))
        if last:
            self._on_over(self)

    def fail(self, index: int, error: ClipError) -> None:
        """An item's error."""
        with self._lock:
            if len(self.inputs.items) > 1 or self.job.on_error is OnError.SKIP:
                error.index = self._place(index)
            self._errors[index] = error
            enough = self.job.on_error is OnError.FAIL
            last = self._end(enough or self.done + self.failed == len(self.inputs.items))
        if last:
            self._on_over(self)

    def expire(self) -> None:
        """The deadline passed: end, and let :meth:`ending` say so."""
        with self._lock:
            last = self._end(True)
        if last:
            self._on_over(self)

    def abandon(self) -> None:
        """Stop: somebody else decides, or has decided, what becomes of the job."""
        with self._lock:
            last = self._end(True)
            self.abandoned = self.abandoned or last
        if last:
            self._on_over(self)

    def _end(self, now: bool) -> bool:
        """Whether it is this report that ends the run."""
        if self.over or not now:
            return False
        self.over = True
        return True

    def _place(self, index: int) -> int | None:
        """The item's place as its caller counts: a comparison's subject has none, its prompts start at 0."""
        if self.job.kind is not Kind.COMPARE:
            return index
        return index - 1 if index else None

    def ending(self) -> Ending:
        """How the job ends; for a run that is over and not abandoned."""
        errors = [self._errors[i] for i in sorted(self._errors)]
        answer = Answer(fingerprint=self.clip.fingerprint, timings=self._timings, names=self.inputs.names)
        state = State.SUCCEEDED
        if self.late:
            late = Late("The job's deadline passed before it was done.")
            state, answer.error = State.EXPIRED, late.to_wire()
        elif errors and (self.job.on_error is OnError.FAIL or self.job.kind is Kind.COMPARE or not self._rows):
            state, answer.error = State.FAILED, errors[0].to_wire()
        else:
            features = np.stack([self._rows[i] for i in sorted(self._rows)]).astype("<f4", copy=False)
            if self.job.kind is Kind.COMPARE:
                answer.similarity = cosine(features[0], features[1:]).tolist()
            else:
                answer.vectors, answer.dimension = features.tobytes(), features.shape[1]
        answer.errors = [error.to_wire() for error in errors]
        return Ending(self.job.id, state, answer, self.done, self.failed)


def cosine(subject: Row, prompts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines (n,) of a subject (dimension,) with prompts (n, dimension), in float32."""
    norms = np.linalg.norm(prompts, axis=1) * np.linalg.norm(subject)
    out: NDArray[np.float32] = prompts @ subject / np.maximum(norms, np.float32(1e-12))
    return out


class RunItem:
    """One picture or text of a run, as the batcher sees it (:class:`clip_queue.worker.inference.batcher.Item`)."""

    __slots__ = ("_began", "_index", "_leave", "_ready", "_run", "_started", "forward", "lane", "payload")
    size = 1

    def __init__(
        self, run: Run, index: int, forward: Forward, payload: Any, began: float, leave: Callable[[Row | None], None]
    ) -> None:
        self.forward = forward
        self.payload = payload
        self.lane: Lane = run.job.lane
        self._run = run
        self._index = index
        self._leave = leave  # called once, with the features if there are any, as the item leaves the engine
        self._began = began
        self._ready = time.monotonic()
        self._started = 0.0

    @property
    def dropped(self) -> bool:
        return self._run.over or self._run.late

    def drop(self) -> None:
        if not self._run.over:
            self._run.expire()
        self._leave(None)

    def started(self) -> None:
        self._started = time.monotonic()

    def resolve(self, features: Row) -> None:
        now = time.monotonic()
        timings = {
            "prepare": self._ready - self._began,  # decoding, or tokenising
            "wait": self._started - self._ready,  # for the model to be free
            "forward": now - self._started,
        }
        row = np.array(features)  # its own memory: a view would keep the whole batch
        self._leave(row)
        self._run.put(self._index, row, timings)

    def fail(self, error: Exception) -> None:
        self._leave(None)
        self._run.fail(self._index, ClipError(f"The model failed on this item ({type(error).__name__})."))
