"""Job handlers: other packages can add kinds of jobs by entry points of the group ``clip_queue.job_handlers``.

So the worker does not import the packages above it. A handler uses the worker's inference engine. The job executor
claims, renews and completes a handler's job like any other job.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from clip_queue.shared.errors import ClipError, Unreadable
from clip_queue.shared.fields import is_known
from clip_queue.shared.job import Inputs, Job, JobResult, State
from clip_queue.shared.ops import Completion
from clip_queue.worker.executor.leases import Task
from clip_queue.worker.inference.engine import InferenceEngine

log = logging.getLogger(__name__)

GROUP = "clip_queue.job_handlers"


class JobHandler(Task, Protocol):
    """The work on one job. It stops soon after :meth:`abandon`, which is also called when the worker drains."""

    def run(self) -> Completion | None:
        """Do the job in the calling thread. Returns its completion; None if it was abandoned."""


HandlerFactory = Callable[[Job, Inputs, InferenceEngine], JobHandler]


def load_handlers(points: Iterable[EntryPoint] | None = None) -> dict[str, HandlerFactory]:
    """The job handlers by kind. A handler whose packages are not installed is left out, with a log line.

    Args:
        points: the entry points to load; None: all that are installed in :data:`GROUP`.
    """
    found: dict[str, HandlerFactory] = {}
    for point in entry_points(group=GROUP) if points is None else points:
        try:
            found[point.name] = point.load()
        except ImportError as error:
            log.info("no handler of %s here: %s", point.name, error)
    return found


def unsupported(job: Job) -> Completion:
    """The completion of a job whose kind has no handler here, or whose inputs are gone."""
    return failure(job, ClipError(f"This worker cannot do {job.kind}: pip install 'clip-queue[serve]' there."))


def failure(job: Job, error: ClipError) -> Completion:
    """The completion of a job that cannot be begun."""
    return Completion(job.id, State.FAILED, JobResult(error=error.to_wire()))


def unknown_form(item: object) -> Unreadable | None:
    """The error of an item that is neither an image's bytes nor a text."""
    if isinstance(item, bytes | str):
        return None
    return Unreadable(f"This worker does not know items of the form {type(item).__name__}.")


def unknown_word(job: Job) -> Unreadable | None:
    """What a job of another release asks for that this one does not know."""
    words = (("jobs of kind", job.kind), ("lane", job.lane), ("on_error", job.on_error))
    for what, word in words:
        if not is_known(word):
            return Unreadable(
                f"This worker does not know {what} {str(word)[:80]!r}: it is older than the API that took the job."
            )
    return None
