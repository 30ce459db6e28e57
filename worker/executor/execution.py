"""A job in work: its items on their way through the engine, and what came of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from clip_queue.shared import comparison
from clip_queue.shared.errors import ClipError, Late
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, OnError, State
from clip_queue.shared.ops import Completion
from clip_queue.shared.vectors import Vector, cosine


class JobExecution:
    """Items report to an execution from many threads. ``on_over`` is called exactly once, when it is over:

    all items are reported, or one failed and the job asked for no more, or its deadline passed, or it was
    :attr:`abandoned` (cancelled, taken over, given back). Once it is over, nothing more is spent on it.
    """

    def __init__(self, job: Job, inputs: Inputs, fingerprint: str, on_over: Callable[[JobExecution], None]) -> None:
        self.job = job
        self.inputs = inputs
        self.over = False
        self.abandoned = False
        self._fingerprint = fingerprint
        self._on_over = on_over
        self._lock = threading.Lock()
        self._features: dict[int, Vector] = {}
        self._errors: dict[int, ClipError] = {}
        self._timings: dict[str, float] = {}
        left = (job.deadline - job.started) / 1000  # both on the store's clock
        self._deadline = time.monotonic() + left if job.deadline else float("inf")

    @property
    def done(self) -> int:
        return len(self._features)

    @property
    def failed(self) -> int:
        return len(self._errors)

    @property
    def late(self) -> bool:
        return time.monotonic() > self._deadline

    def item(self, index: int) -> ExecutionItem:
        """Who gets the features of the item ``index``."""
        return ExecutionItem(self, index)

    def put(self, index: int, features: Vector, timings: dict[str, float]) -> None:
        """An item's features. The timings of the item that comes last stay: they add up to the job's time."""
        with self._lock:
            self._features[index] = features
            self._timings = {"queue": (self.job.started - self.job.created) / 1000, **timings}
            last = self._end(self.done + self.failed == len(self.inputs.items))
        if last:
            self._on_over(self)

    def fail(self, index: int, error: ClipError) -> None:
        """An item's error."""
        with self._lock:
            if len(self.inputs.items) > 1 or self.job.on_error is OnError.SKIP:
                error.index = index if self.job.kind is not Kind.COMPARE else comparison.caller_index(index)
            self._errors[index] = error
            enough = self.job.on_error is OnError.FAIL
            last = self._end(enough or self.done + self.failed == len(self.inputs.items))
        if last:
            self._on_over(self)

    def expire(self) -> None:
        """The deadline passed: end, and let :meth:`completion` say so."""
        with self._lock:
            last = self._end(True)
        if last:
            self._on_over(self)

    def abandon(self) -> None:
        """Stop: another process decides, or has decided, what becomes of the job."""
        with self._lock:
            last = self._end(True)
            self.abandoned = self.abandoned or last
        if last:
            self._on_over(self)

    def _end(self, now: bool) -> bool:
        """Whether it is this report that ends the execution."""
        if self.over or not now:
            return False
        self.over = True
        return True

    def completion(self) -> Completion:
        """How the job ends; for an execution that is over and not abandoned."""
        errors = [self._errors[i] for i in sorted(self._errors)]
        result = JobResult(fingerprint=self._fingerprint, timings=self._timings, names=self.inputs.names)
        state = State.SUCCEEDED
        if self.late:
            late = Late("The job's deadline passed before it was done.")
            state, result.error = State.EXPIRED, late.to_wire()
        elif errors and (self.job.on_error is OnError.FAIL or self.job.kind is Kind.COMPARE or not self._features):
            state, result.error = State.FAILED, errors[0].to_wire()
        else:
            features = np.stack([self._features[i] for i in sorted(self._features)]).astype("<f4", copy=False)
            if self.job.kind is Kind.COMPARE:
                result.similarity = cosine(*comparison.split(features)).tolist()
            else:
                result.vectors, result.dimension = features.tobytes(), features.shape[1]
        result.errors = [error.to_wire() for error in errors]
        return Completion(self.job.id, state, result, self.done, self.failed)


class ExecutionItem:
    """One item's :class:`clip_queue.worker.inference.item.Recipient`."""

    __slots__ = ("_execution", "_index")

    def __init__(self, execution: JobExecution, index: int) -> None:
        self._execution = execution
        self._index = index

    @property
    def gone(self) -> bool:
        return self._execution.over or self._execution.late

    def drop(self) -> None:
        if not self._execution.over:
            self._execution.expire()

    def resolve(self, features: Vector, timings: dict[str, float]) -> None:
        self._execution.put(self._index, features, timings)

    def fail(self, error: ClipError) -> None:
        self._execution.fail(self._index, error)
