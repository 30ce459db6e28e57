"""Handlers: kinds of jobs that other packages know how to do, entry points of the group ``clip_queue.job_handlers``.

The worker does not import what stands above it. It lends a handler the inference engine, and sees to claim, lease,
progress and completion as for its own jobs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Protocol

from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Inputs, Job, JobResult, State
from clip_queue.shared.ops import Completion
from clip_queue.worker.executor.leases import Task
from clip_queue.worker.inference.engine import InferenceEngine

log = logging.getLogger(__name__)

GROUP = "clip_queue.job_handlers"


class JobHandler(Task, Protocol):
    """One job of a handler's kind. It stops soon after :meth:`abandon`, also when its worker drains."""

    def run(self) -> Completion | None:
        """Do the job, in the calling thread; None: it was abandoned, and nothing is to be said about it."""


HandlerFactory = Callable[[Job, Inputs, InferenceEngine], JobHandler]


def load_handlers() -> dict[str, HandlerFactory]:
    """The handlers that are installed here, by kind. One whose own needs are not met is left out, with a log line."""
    found: dict[str, HandlerFactory] = {}
    for point in entry_points(group=GROUP):
        try:
            found[point.name] = point.load()
        except ImportError as error:
            log.info("no handler of %s here: %s", point.name, error)
    return found


def unsupported(job: Job) -> Completion:
    """The end of a job of a kind that has no handler here, or whose inputs are gone."""
    message = f"This worker cannot do {job.kind}: pip install 'clip-queue[serve]' there."
    return Completion(job.id, State.FAILED, JobResult(error=ClipError(message).to_wire()))
