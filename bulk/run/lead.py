"""Who leads a run: the command that a person has called, or a worker that was given the run by the queue.

A worker holds the run as it holds any job: by its own lease, which its heartbeat renews. So a run that a worker leads
only writes its progress, and hears by that whether it is still this worker's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import orjson

from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.run_lease import Stopped
from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError, Unavailable, UnknownJob
from clip_queue.shared.job import State
from clip_queue.shared.runs import write_progress
from clip_queue.shared.store import Store


@dataclass(frozen=True)
class Order:
    """Which run a process is to lead, and for whom: ``worker`` is the id of the worker that holds it."""

    job_id: str
    model: str
    owner: str
    worker: str
    request: dict[str, Any]

    def to_line(self) -> bytes:
        return orjson.dumps(asdict(self)) + b"\n"


class Lease(Protocol):
    """What the runner needs of the lease of its run."""

    @property
    def keeps_shards(self) -> bool:
        """Whether the submitted shards are left to another leader when this one stops."""

    def renew(self, progress: Progress) -> None:
        """Renew it and write the progress.

        Raises:
            Stopped: the run was cancelled, or is another's now.
            Unavailable: the store is away.
        """

    def end(self, progress: Progress, *, stopped: bool, error: ClipError | None) -> None:
        """The run is over for this leader. Raises :class:`Unavailable`."""


@dataclass(frozen=True)
class WorkerLead:
    """A worker leads the run that is the job ``job_id``.

    Args:
        owner: whose the run and its shards are.
        worker: the worker's id, which the job's record names as long as it holds the run.
        confined: whether only what the settings allow may be read.
        lock_wait: seconds that the leader before may take to let go of the output.
    """

    job_id: str
    owner: str
    worker: str
    confined: bool
    lock_wait: float = 30.0

    def lease(self, store: Store) -> Lease:
        return WorkerLease(store, self)


class WorkerLease:
    """The :class:`Lease` of a run that a worker leads."""

    def __init__(self, store: Store, lead: WorkerLead) -> None:
        self._store, self._lead = store, lead

    @property
    def keeps_shards(self) -> bool:
        """They go on, unless the run has ended: the next leader adopts them."""
        try:
            return self._store.execute(ops.view(self._lead.job_id)).job.state in (State.RUNNING, State.QUEUED)
        except UnknownJob:
            return False
        except Unavailable:
            return True

    def renew(self, progress: Progress) -> None:
        advanced = progress.done + progress.failed > progress.resumed
        lead = self._lead
        _, ours = self._store.execute(
            write_progress(lead.job_id, lead.worker, progress.total or 0, progress.to_json(), advanced=advanced)
        )
        if not ours:
            raise Stopped

    def end(self, progress: Progress, *, stopped: bool, error: ClipError | None) -> None:
        """Nothing: the worker completes the job, or gives it back."""
