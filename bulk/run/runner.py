"""The runner: submits a plan's shards in a bounded window, counts what becomes of them, and ends the run.

Nothing that matters is kept here: the plan and the complete shards are in the output, so this process may be killed at
any moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import OutputError, WrongModel
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.markers import marker_if_complete, scan
from clip_queue.bulk.output.plan_file import PlanFile
from clip_queue.bulk.run.lead import Lease, WorkerLead
from clip_queue.bulk.run.part import WHOLE, Part
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.run_lease import RunLease, Stopped
from clip_queue.bulk.run.shard_queue import ShardQueue
from clip_queue.bulk.run.tally import Tally
from clip_queue.bulk.run.workers import NoWorker
from clip_queue.shared.errors import ClipError, Unavailable, WorkerLost
from clip_queue.shared.job import FINAL, Job, Kind, State
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.shared.workers import WorkerInfo, workers
from clip_queue.sources.looking import go_on, heeding
from clip_queue.sources.source import SourceAway

log = logging.getLogger(__name__)

POLL_INTERVAL = 0.2  # seconds between looks at the submitted shards
BEAT_INTERVAL = 1.0  # seconds between heartbeats of the run
SHARDS_PER_WORKER = 4  # that are submitted and not yet done


@dataclass
class SubmittedShard:
    """A shard whose job is in the queue, or will be again at ``retry_at`` (0: it is now)."""

    number: int
    job_id: str
    submissions: int = 1
    done: int = 0
    failed: int = 0
    unseen_since: float = 0.0
    retry_at: float = 0.0


@dataclass
class Outcome:
    """How a run ended. ``lost`` are the shards that could not be done, with the reason."""

    lost: dict[int, str] = field(default_factory=dict)
    stopped: bool = False


class Runner:
    """Runs a plan, or a ``part`` of it, to its end. It owns ``store`` and closes it.

    ``should_stop`` is asked, and ``show`` gets the progress, every :data:`POLL_INTERVAL`. ``now`` is the clock.
    ``lead``: a worker leads the run; None: a command does, which is this process.
    """

    def __init__(
        self,
        settings: Settings,
        output: Output,
        plan: RunPlan,
        store: Store,
        *,
        owner: str,
        should_stop: Callable[[], bool],
        show: Callable[[Progress], None],
        retry: RetryPolicy,
        part: Part = WHOLE,
        now: Callable[[], float] = time.monotonic,
        lead: WorkerLead | None = None,
    ) -> None:
        self._settings, self._output, self._plan = settings, output, plan
        self._store, self._retry, self._now = store, retry, now
        self._should_stop, self._show = should_stop, show
        self._file = PlanFile(output)
        self._shards = plan.numbers if part == WHOLE else part.shards(plan.shards)
        self._queue = ShardQueue(settings, output, plan, store, owner=owner, wait=self._wait_for_store, lead=lead)
        self._lease: Lease = lead.lease(store) if lead else RunLease(store, plan, owner, settings)
        self._submitted: dict[int, SubmittedShard] = {}
        self._left = self._shards_left()
        self._exhausted = False
        self._beaten, self._last_alive, self._away_since = float("-inf"), now(), 0.0
        self._earlier: set[str] = set()  # workers that cannot read the plan
        self._tally = Tally(output, plan, self._shards)
        self.progress, self.report, self.waited = self._tally.progress, self._tally.report, self._tally.waited
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Do what is not done yet.

        Raises:
            OutputError: the output cannot be written.
            SourceAway: the source has not come back.
            NoWorker: no worker has been alive for too long.
        """
        try:
            while self.step():
                time.sleep(POLL_INTERVAL)
        except Stopped:
            self.outcome.stopped = True
            if not self._lease.keeps_shards:
                self._cancel()
        except BaseException:
            self._cancel()
            raise
        return self.outcome

    def step(self) -> bool:
        """Look at what was submitted, and submit what the window has room for; False once nothing is left."""
        self._beat()
        self._look()
        window = SHARDS_PER_WORKER * max(1, self.progress.workers)
        while not self._exhausted and len(self._submitted) < window:
            with heeding(self._go_on):
                shard = next(self._left, None)
            if shard is None:
                self._exhausted = True
            else:
                self._go_on()
                self._submit(shard)
        self._show(self.progress)
        return bool(self._submitted) or not self._exhausted

    def close(self, error: ClipError | None = None) -> None:
        """End the run's job and let go of it."""
        with suppress(Stopped, NoWorker):
            self._beat(force=True)
        try:
            self._lease.end(self.progress, stopped=self.outcome.stopped, error=error)
        except Unavailable:
            log.info("the store is away: the run's job ends with its lease")
        self._queue.close()
        self._file.close()

    def _shards_left(self) -> Iterator[int]:
        """The shards to do; those that are complete are counted on the way."""
        self._tally.weigh(self._file)
        for shard, marker in scan(self._output, self._plan, self._shards):
            go_on()  # a hundred thousand markers on a slow file system take longer than the lease
            if marker is None:
                yield shard
            else:
                self._tally.found(marker)

    # Shards

    def _submit(self, shard: int, submissions: int = 1) -> None:
        self._stop_if_asked()
        job_id = self._queue.submit(shard, self._file.rows(shard))
        self._submitted[shard] = SubmittedShard(shard, job_id, submissions)

    def _wait_for_store(self) -> None:
        self._go_on()
        self._show(self.progress)
        time.sleep(POLL_INTERVAL)

    def _look(self) -> None:
        """What has become of the submitted shards."""
        self._stop_if_asked()
        for shard in [s for s in self._submitted.values() if s.retry_at and self._now() >= s.retry_at]:
            self._submit(shard.number, shard.submissions)
        queued = [shard for shard in self._submitted.values() if not shard.retry_at]
        try:
            jobs = self._queue.jobs([shard.job_id for shard in queued])
        except Unavailable:
            return
        for shard, job in zip(queued, jobs, strict=True):
            self._go_on()
            if job is None:  # the store has lost it
                self._submit(shard.number, shard.submissions)
            else:
                self._look_at(shard, job)
        self.progress.underway = [(s.done, s.failed) for s in self._submitted.values()]
        self.progress.away = self._away_since > 0

    def _look_at(self, shard: SubmittedShard, job: Job) -> None:
        if job.done + job.failed > shard.done + shard.failed:
            self._away_since = 0.0  # the source gives rows
        shard.done, shard.failed = job.done, job.failed
        if job.state not in FINAL:
            return
        marker = marker_if_complete(self._output, self._plan, shard.number)
        if marker is not None:
            del self._submitted[shard.number]
            self._tally.finished(marker)
        elif job.state is State.FAILED:
            self._on_failure(shard, ClipError.from_wire(job.error or {}), job.worker)
        elif job.state is State.SUCCEEDED:
            self._on_unseen(shard)
        else:  # cancelled by somebody
            self._submit_again(shard, "its job was cancelled each time")

    def _on_failure(self, shard: SubmittedShard, error: ClipError, worker: str) -> None:
        if isinstance(error, (OutputError, WrongModel)):
            raise error
        if isinstance(error, SourceAway):
            self._on_away(shard, error)
        elif isinstance(error, WorkerLost):
            times = self._retry.submissions * self._settings.max_attempts
            self._submit_again(shard, f"its worker was lost each of {times} times")
        elif self._is_earlier(worker):  # it refuses the plan, and may be quicker than those that can read it
            shard.retry_at = self._now() + self._retry.other_worker
        else:
            self._give_up(shard, error.message)

    def _is_earlier(self, worker: str) -> bool:
        """Whether a worker is of an earlier release, which cannot read the plan."""
        if self._plan.version > manifest.VERSION and worker not in self._earlier:
            self._beat(force=True)  # it may have come a moment ago
        return worker in self._earlier

    def _on_away(self, shard: SubmittedShard, error: SourceAway) -> None:
        """The source is waited for: trying one shard after the other would only give the same error for each."""
        now = self._now()
        self._away_since = self._away_since or now
        if now - self._away_since > self._retry.source_away:
            minutes = self._retry.source_away / 60
            raise SourceAway(f"the source has been away for {minutes:.0f} minutes: {error.message}")
        shard.done = shard.failed = 0
        shard.retry_at = now + self._retry.source_pause

    def _on_unseen(self, shard: SubmittedShard) -> None:
        """A worker says that the shard is done, and its files are not here: a network file system may be late."""
        now = self._now()
        shard.unseen_since = shard.unseen_since or now
        if now - shard.unseen_since > self._retry.marker_unseen:
            reason = "a worker has written it, but not where this command looks: do both see the same output?"
            self._give_up(shard, reason)

    def _submit_again(self, shard: SubmittedShard, reason: str) -> None:
        if shard.submissions >= self._retry.submissions:
            self._give_up(shard, reason)
        else:
            self._submit(shard.number, shard.submissions + 1)

    def _give_up(self, shard: SubmittedShard, reason: str) -> None:
        del self._submitted[shard.number]
        self.outcome.lost[shard.number] = reason

    def _cancel(self) -> None:
        self._queue.cancel(shard.job_id for shard in self._submitted.values())

    # The run itself

    def _go_on(self) -> None:
        """To be called before each step of what may take long."""
        self._stop_if_asked()
        self._beat()

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise Stopped

    def _beat(self, force: bool = False) -> None:
        """Renew the run's lease and look at the workers, now and then. Other methods wait for a store that is away."""
        now = self._now()
        if now - self._beaten < BEAT_INTERVAL and not force:
            return
        self._beaten = now
        try:
            able = [w for w in self._store.execute(workers()) if serves(w, self._plan)]
            alive = [w for w in able if w.manifests >= self._plan.version]
            self._earlier |= {w.id for w in able if w not in alive}
            self.progress.look_at(alive)
            self._lease.renew(self.progress)
        except Unavailable:
            return
        if alive:
            self._last_alive = now
        elif now - self._last_alive > self._retry.no_worker:
            which = f"no worker{' of this release' if able else ''} has served {self._plan.model.name}"
            raise NoWorker(f"{which} for {self._retry.no_worker / 60:.0f} minutes")


def serves(worker: WorkerInfo, plan: RunPlan) -> bool:
    """Whether a worker does shards of a plan's model."""
    return Kind.EMBED_SHARD in worker.work and any(m.fingerprint == plan.model.fingerprint for m in worker.models)
