"""The command's side of a run: makes or finds the plan, submits shards in a bounded window, counts, reports.

Nothing that matters is kept here: the plan and the whole shards are in the output, so this process may be killed at any
moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

from clip_queue.bulk.output.layout import Output, Plan
from clip_queue.bulk.output.plan_file import PlanFile
from clip_queue.bulk.output.shard_job import OutputError, WrongModel, inputs_of
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.resume import whole
from clip_queue.bulk.run.run_lease import Lead, Stopped
from clip_queue.shared import ops
from clip_queue.shared.broker import TASK, celery_app, queue_name
from clip_queue.shared.errors import ClipError, Unavailable, UnknownJob, WorkerLost
from clip_queue.shared.job import FINAL, Job, Kind, Lane, State
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Op, Store
from clip_queue.shared.workers import WorkerInfo, workers
from clip_queue.sources.source import SourceAway

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK = 0.2  # seconds between looks at the shards under way
BEAT = 1.0  # seconds between signs of life
AHEAD = 4  # shards a worker that are submitted and not yet done
SUBMISSIONS = 3  # times that a shard which lost its workers is submitted
PAUSE = 5.0  # seconds before a shard whose source was away is tried again
AWAY = 300.0  # seconds that the source may be away, and no row come, before the run is given up
UNSEEN = 90.0  # seconds that a file may take to be seen from another machine
NO_WORKER = 600.0  # seconds without a live worker before the run is given up
NO_LIMIT = 2**53  # a run's window is its own limit


class NoWorker(ClipError):
    """Nobody does the run's shards."""

    code, status = "no_worker", 503


@dataclass
class Underway:
    """A shard that was submitted."""

    number: int
    job_id: str
    tries: int = 1
    done: int = 0
    failed: int = 0
    unseen_since: float = 0.0
    again_at: float = 0.0  # when to submit it again; 0: it is submitted


@dataclass
class Outcome:
    """How a run ended. ``lost`` are the shards that could not be done, with the reason."""

    lost: dict[int, str] = field(default_factory=dict)
    stopped: bool = False


class Runner:
    """Runs a plan to its end. ``told_to_stop`` is asked all the time, ``show`` gets the progress every :data:`LOOK`."""

    def __init__(
        self,
        settings: Settings,
        output: Output,
        plan: Plan,
        *,
        owner: str,
        told_to_stop: Callable[[], bool],
        show: Callable[[Progress], None],
    ) -> None:
        self._settings, self._output, self._plan = settings, output, plan
        self._file = PlanFile(output)
        self._owner = owner
        self._told_to_stop, self._show = told_to_stop, show
        self._store = Store.connect(settings)
        self._sender = celery_app(settings, publisher=True)
        self._lead = Lead(self._store, plan, owner, settings)
        self._underway: dict[int, Underway] = {}
        self._beaten, self._last_alive, self._away_since = 0.0, time.monotonic(), 0.0
        self.progress = Progress(shards=plan.shards, rows=plan.rows)
        self.progress.weight = sum(map(self._weight, range(plan.shards)))
        self.outcome = Outcome()
        self.waited = {"reading": 0.0, "decoding": 0.0, "forward": 0.0}  # seconds, over all shards

    @property
    def job_id(self) -> str:
        """The run's job, for ``GET /jobs/{id}``."""
        return self._lead.job_id

    def run(self) -> Outcome:
        """Do what is not done yet.

        Raises:
            OutputError: the output cannot be written.
            SourceAway: the source has not come back.
        """
        waiting = self._left()
        exhausted = False
        try:
            while self._underway or not exhausted:
                self._beat()
                window = AHEAD * max(1, self.progress.workers)
                while not exhausted and len(self._underway) < window:
                    shard = next(waiting, None)
                    if shard is None:
                        exhausted = True
                    else:
                        self._submit(shard)
                self._look()
                self._show(self.progress)
                if self._underway:
                    time.sleep(LOOK)
        except Stopped:
            self.outcome.stopped = True
            self._cancel()
        except BaseException:
            self._cancel()
            raise
        return self.outcome

    def close(self, error: ClipError | None = None) -> None:
        """End the run's job and let go of it."""
        with suppress(Stopped, NoWorker):
            self._beat(force=True)
        try:
            self._lead.end(self.progress, stopped=self.outcome.stopped, error=error)
        except Unavailable:
            log.info("the store is away: the run's job ends with its lease")
        self._store.close()
        self._sender.close()

    def _left(self) -> Iterator[int]:
        """The shards to do; those that are whole are counted on the way."""
        there = self._output.listed("shards")
        for shard in range(self._plan.shards):
            name = self._output.names(shard, self._plan.shards)["shard"].rpartition("/")[2]
            marker = whole(self._output, self._plan, shard) if name in there else None
            if marker is None:
                yield shard
            else:
                self.progress.found(marker, self._weight(shard))

    # Shards

    def _submit(self, shard: int, tries: int = 1) -> None:
        """Put a shard in the line, or find it there."""
        job = Job(
            kind=Kind.EMBED_SHARD,
            model=self._plan.model.name,
            total=self._file.rows(shard),
            lane=Lane.BULK,
            owner=self._owner,
            ttl=int(self._settings.sync_ttl * 1000),
        )
        inputs = inputs_of(self._output, self._plan, shard)
        for turn in count():
            # By this key two commands, or one that was killed and is back, share a job instead of doing it twice; a job
            # that has ended is of no use any more.
            key = f"{self._plan.id}:{shard}:{turn}"
            submission = ops.Submission(job, inputs, limit=NO_LIMIT, idempotency=key, digest=key)
            accepted = self._patiently(ops.accept([submission]))[0]
            if isinstance(accepted, ClipError):
                raise accepted
            view, _ = self._patiently(ops.outcome(accepted.job_id))
            if view and view.job.state not in FINAL:
                self._underway[shard] = Underway(shard, accepted.job_id, tries)
                self._ring(accepted.job_id)
                return

    def _patiently(self, op: Op[T]) -> T:
        """An operation's result, however long the store is away."""
        while True:
            self._stop_if_told()
            try:
                return self._store.run(op)
            except Unavailable:
                self._show(self.progress)
                time.sleep(LOOK)

    def _ring(self, job_id: str) -> None:
        model = self._plan.model.name
        try:
            message = (model, Lane.BULK, [job_id])
            self._sender.send_task(TASK, message, queue=queue_name(model, Lane.BULK), retry=False)
        except Exception as error:  # whatever the broker's client raises; the reconciler rings again
            log.info("could not ring: %s", type(error).__name__)

    def _look(self) -> None:
        """What has become of the shards under way."""
        self._stop_if_told()
        for shard in list(self._underway.values()):
            if shard.again_at:
                if time.monotonic() >= shard.again_at:
                    self._submit(shard.number, shard.tries)
                continue
            try:
                view, _ = self._store.run(ops.outcome(shard.job_id))
            except Unavailable:
                return
            if view is None:  # the store has lost it
                self._submit(shard.number, shard.tries)
                continue
            job = view.job
            if job.done + job.failed > shard.done + shard.failed:
                self._away_since = 0.0  # it answers
            shard.done, shard.failed = job.done, job.failed
            if job.state not in FINAL:
                continue
            marker = whole(self._output, self._plan, shard.number)
            if marker is not None:
                del self._underway[shard.number]
                self.progress.finished(marker, self._weight(shard.number))
                for stage in self.waited:
                    self.waited[stage] += marker["seconds"].get(stage, 0.0)
            elif job.state is State.FAILED:
                self._failed(shard, ClipError.from_wire(job.error or {}))
            elif job.state is State.SUCCEEDED:
                self._unseen(shard)
            else:  # cancelled by somebody
                self._again(shard, "its job was cancelled each time")
        self.progress.underway = [(s.done, s.failed) for s in self._underway.values()]
        self.progress.away = self._away_since > 0

    def _failed(self, shard: Underway, error: ClipError) -> None:
        if isinstance(error, (OutputError, WrongModel)):
            raise error
        if isinstance(error, SourceAway):
            self._away(shard, error)
        elif isinstance(error, WorkerLost):
            self._again(shard, f"its worker was lost each of {SUBMISSIONS * self._settings.max_attempts} times")
        else:
            self._lose(shard, error.message)

    def _away(self, shard: Underway, error: SourceAway) -> None:
        """The source is waited for: trying one shard after the other would only say the same of each."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > AWAY:
            raise SourceAway(f"the source has been away for {AWAY / 60:.0f} minutes: {error.message}")
        shard.done = shard.failed = 0
        shard.again_at = now + PAUSE

    def _unseen(self, shard: Underway) -> None:
        """A worker says that it is done, and it is not to be seen: a network's file system may be late."""
        now = time.monotonic()
        shard.unseen_since = shard.unseen_since or now
        if now - shard.unseen_since > UNSEEN:
            self._lose(shard, "a worker has written it, but not where this command looks: do both see the same output?")

    def _again(self, shard: Underway, reason: str) -> None:
        if shard.tries >= SUBMISSIONS:
            self._lose(shard, reason)
        else:
            self._submit(shard.number, shard.tries + 1)

    def _lose(self, shard: Underway, reason: str) -> None:
        del self._underway[shard.number]
        self.outcome.lost[shard.number] = reason

    def _weight(self, shard: int) -> int:
        return self._file.weight(shard) if self._plan.rows is None else 0

    def _cancel(self) -> None:
        """Give back what is under way: a worker stops within a second or two, and what waits is not begun."""
        for shard in self._underway.values():
            try:
                self._store.run(ops.cancel(shard.job_id, self._owner))
            except UnknownJob:
                continue
            except Unavailable:  # each further one would take as long to say the same
                log.info("the store is away: its workers do the shards under way to the end")
                return

    # The run itself

    def _stop_if_told(self) -> None:
        if self._told_to_stop():
            raise Stopped

    def _beat(self, force: bool = False) -> None:
        """Renew the lead and look at the workers, once in a while. A store that is away is waited for elsewhere."""
        now = time.monotonic()
        if now - self._beaten < BEAT and not force:
            return
        self._beaten = now
        try:
            alive = [w for w in self._store.run(workers()) if serves(w, self._plan)]
            self.progress.look_at(alive)
            self._lead.renew(self.progress)
        except Unavailable:
            return
        if alive:
            self._last_alive = now
        elif now - self._last_alive > NO_WORKER:
            raise NoWorker(f"no worker has served {self._plan.model.name} for {NO_WORKER / 60:.0f} minutes")


def serves(worker: WorkerInfo, plan: Plan) -> bool:
    """Whether a worker can do shards of a plan."""
    return Kind.EMBED_SHARD in worker.work and any(m.fingerprint == plan.model.fingerprint for m in worker.models)
