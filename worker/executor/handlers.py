"""Kinds of jobs that other packages know how to do: entry points of the group ``clip_queue.work``, by kind.

The worker stands below them and does not import them; it lends them the engine, and sees to claim, lease, progress
and end as for its own jobs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Answer, Inputs, Job, State
from clip_queue.shared.ops import Ending

if TYPE_CHECKING:
    from clip_queue.worker.executor.executor import Engine

log = logging.getLogger(__name__)

GROUP = "clip_queue.work"


class Work(Protocol):
    """A job in work. ``done`` and ``failed`` are the progress that the heartbeat writes; read from another thread."""

    job: Job
    done: int
    failed: int

    def run(self) -> Ending | None:
        """Do it, in the calling thread; None: it was abandoned, and nothing is to be said about it."""

    def abandon(self) -> None:
        """Stop soon: somebody else decides, or has decided, what becomes of the job. Called from another thread."""


Begin = Callable[[Job, Inputs, "Engine"], Work]


def load_work() -> dict[str, Begin]:
    """What is installed here. A package whose own needs are not met is left out, with a line in the log."""
    found: dict[str, Begin] = {}
    for point in entry_points(group=GROUP):
        try:
            found[point.name] = point.load()
        except ImportError as error:
            log.info("no %s here: %s", point.name, error)
    return found


def refusal(job: Job) -> Ending:
    """The end of a job of a kind that is not installed here, or whose inputs are gone."""
    message = f"This worker cannot do {job.kind}: pip install 'clip-queue[bulk]' there."
    return Ending(job.id, State.FAILED, Answer(error=ClipError(message).to_wire()))
