"""The execution of a job: it collects the features and the errors of the items, and makes the completion of them."""

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
    """The execution of one job. Its items report to it from many threads.

    It is over when all items have reported, when one has failed and the job stops at the first error, when the
    deadline has passed, or when it is :attr:`abandoned` (the job was cancelled, taken over or given back). At that
    moment ``on_over`` is called, exactly once. The items that are left then cost no compute.

    Args:
        fingerprint: the model's fingerprint, for the result.
        on_over: called with this execution, in the thread that ended it.
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
        """Items that have features."""
        return len(self._features)

    @property
    def failed(self) -> int:
        """Items that have failed."""
        return len(self._errors)

    @property
    def late(self) -> bool:
        """Whether the job's deadline has passed."""
        return time.monotonic() > self._deadline

    def item(self, index: int) -> ExecutionItem:
        """The recipient of the features of the item ``index``."""
        return ExecutionItem(self, index)

    def put(self, index: int, features: Vector, timings: dict[str, float]) -> None:
        """Take an item's features (dimension,) and its timings in seconds.

        The result gets the timings of the last item: with the time in the queue, they add up to the job's time.
        """
        with self._lock:
            self._features[index] = features
            self._timings = {"queue": (self.job.started - self.job.created) / 1000, **timings}
            last = self._end(self.done + self.failed == len(self.inputs.items))
        if last:
            self._on_over(self)

    def fail(self, index: int, error: ClipError) -> None:
        """Take an item's error."""
        with self._lock:
            if len(self.inputs.items) > 1 or self.job.on_error is OnError.SKIP:
                error.index = index if self.job.kind is not Kind.COMPARE else comparison.caller_index(index)
            self._errors[index] = error
            enough = self.job.on_error is OnError.FAIL
            last = self._end(enough or self.done + self.failed == len(self.inputs.items))
        if last:
            self._on_over(self)

    def expire(self) -> None:
        """End the execution because the deadline has passed; :meth:`completion` is then ``expired``."""
        with self._lock:
            last = self._end(True)
        if last:
            self._on_over(self)

    def abandon(self) -> None:
        """End the execution without a completion: the job does not belong to this worker any more."""
        with self._lock:
            last = self._end(True)
            self.abandoned = self.abandoned or last
        if last:
            self._on_over(self)

    def _end(self, condition: bool) -> bool:
        """End the execution if ``condition`` is true; True if this call has ended it. The caller holds the lock."""
        if self.over or not condition:
            return False
        self.over = True
        return True

    def completion(self) -> Completion:
        """The completion of the job. Call it for an execution that is over and not abandoned."""
        errors = [self._errors[i] for i in sorted(self._errors)]
        result = JobResult(fingerprint=self._fingerprint, timings=self._timings, names=self.inputs.names)
        state = State.SUCCEEDED
        if self.late:
            late = Late("The job's deadline passed before it was done.")
            state, result.error = State.EXPIRED, late.to_wire()
        elif errors and (self.job.on_error is OnError.FAIL or self.job.kind is Kind.COMPARE or not self._features):
            state, result.error = State.FAILED, errors[0].to_wire()
        else:
            rows = [self._features[i] for i in sorted(self._features)]
            features = np.concatenate(rows).reshape(len(rows), -1).astype("<f4", copy=False)
            if self.job.kind is Kind.COMPARE:
                result.similarity = cosine(*comparison.split(features)).tolist()
            else:
                result.vectors, result.dimension = features.tobytes(), features.shape[1]
        result.errors = [error.to_wire() for error in errors]
        return Completion(self.job.id, state, result, self.done, self.failed)


class ExecutionItem:
    """The :class:`clip_queue.worker.inference.item.Recipient` of one item of an execution."""

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
