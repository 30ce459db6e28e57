"""A plan's shards as jobs: put in the queue, looked at, cancelled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import TypeVar

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.shard_reference import ShardReference
from clip_queue.bulk.run.lead import WorkerLead
from clip_queue.shared import ops, submissions
from clip_queue.shared.errors import ClipError, Unavailable, UnknownJob
from clip_queue.shared.job import FINAL, Job, Kind
from clip_queue.shared.lane import Lane
from clip_queue.shared.messages import publish
from clip_queue.shared.runs import led
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Op, Store

log = logging.getLogger(__name__)

T = TypeVar("T")

NO_LIMIT = 2**53  # a run's window is its own limit


class ShardQueue:
    """The queue as a run sees it. It owns ``store`` and closes it.

    ``wait`` is called between attempts while the store is away; it may raise.
    """

    def __init__(
        self,
        settings: Settings,
        output: Output,
        plan: RunPlan,
        store: Store,
        *,
        owner: str,
        wait: Callable[[], None],
        lead: WorkerLead | None = None,
    ) -> None:
        self._output, self._plan = output, plan
        self._store = store
        self._owner, self._wait = owner, wait
        self._place = led(plan.model.name) if lead else plan.model.name  # the name that shards wait under
        self._confined = lead is not None and lead.confined
        self._ttl = int(settings.sync_ttl * 1000)

    def submit(self, shard: int, rows: int) -> str:
        """Put a shard in the queue, or find it there; the id of its job. Waits for a store that is away."""
        job = Job(
            kind=Kind.EMBED_SHARD,
            model=self._place,
            total=rows,
            lane=Lane.BULK,
            owner=self._owner,
            ttl=self._ttl,
        )
        inputs = ShardReference(self._output.url, self._plan.id, shard, self._confined).to_inputs()
        for turn in count():
            # By this key two commands, or one that was killed and is back, share a job instead of doing it twice; a job
            # that has ended is of no use any more.
            key = f"{self._plan.id}:{shard}:{turn}"
            submission = submissions.Submission(job, inputs, limit=NO_LIMIT, idempotency=key, digest=key)
            accepted = self._until_available(submissions.accept([submission]))[0]
            if isinstance(accepted, ClipError):
                raise accepted
            if not accepted.duplicate:
                return accepted.job_id
            view, _ = self._until_available(ops.outcome(accepted.job_id))
            if view and view.job.state not in FINAL:
                # Its message may be lost; another costs a look.
                self._until_available(publish(self._place, Lane.BULK, [accepted.job_id]))
                return accepted.job_id
        raise AssertionError  # count() does not end

    def jobs(self, job_ids: Sequence[str]) -> list[Job | None]:
        """Shards' jobs, in one round trip; None: the store has lost it. Raises :class:`Unavailable`."""
        return self._store.execute(ops.jobs(job_ids)) if job_ids else []

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs: a worker stops within a second or two, and what is queued is not begun."""
        for job_id in job_ids:
            try:
                self._store.execute(ops.cancel(job_id, self._owner))
            except UnknownJob:
                continue
            except Unavailable:  # each further one would take as long to give the same error
                log.info("the store is away: its workers do the submitted shards to the end")
                return

    def close(self) -> None:
        self._store.close()

    def _until_available(self, op: Op[T]) -> T:
        while True:
            try:
                return self._store.execute(op)
            except Unavailable:
                self._wait()
