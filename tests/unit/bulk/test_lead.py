"""The leases of runs: a command's, which a thread keeps, and a worker's; what becomes of shards when a leader ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fakeredis
import pytest

from clip_queue.bulk.output.errors import ForeignOutput, OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.plan_file import write_plan
from clip_queue.bulk.output.shard_reference import ShardReference
from clip_queue.bulk.run.allowed import claim_output
from clip_queue.bulk.run.lead import WorkerLead
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.resume import check_empty
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.run_lease import RunLease, Stopped
from clip_queue.bulk.run.runner import Runner
from clip_queue.bulk.run.workers import NotStarted, locked
from clip_queue.shared import ops, runs
from clip_queue.shared.job import Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.owners import OPEN
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.sources.source import Piece, Shard, Source
from tests.harness import wait_for
from tests.taken import TakenStore
from tests.unit.bulk.test_runner import ABOUT, INFO, WORKER

PLAN = RunPlan("p", Source("/s", "text", images=False, texts=True), INFO, PlanOptions(), 3, 30)


# A command's lease


@contextmanager
def lease(store: Store, **more: object) -> Iterator[RunLease]:
    it = RunLease(store, PLAN, "me", Settings(), **more)  # type: ignore[arg-type]
    yield it
    it.end(Progress(3, 30), stopped=False, error=None)


def runs_of(store: Store) -> list[Job]:
    return store.execute(ops.list_jobs("me", None, 10, ""))[0]


def test_a_thread_keeps_the_lease_while_the_runner_waits_for_a_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_queue.bulk.run.run_lease.LEASE", 0.5)
    store = Store(fakeredis.FakeRedis())
    with lease(store, interval=0.05) as held:
        held.renew(Progress(3, 30))
        (job,) = runs_of(store)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:  # no other call: the runner is in one operation
            assert store.execute(ops.reconcile("m", 0, 3, 0, 3600)).resend == {}
            assert store.execute(ops.view(job.id)).job.state is State.RUNNING
            time.sleep(0.1)
    assert store.execute(ops.view(job.id)).job.state is State.SUCCEEDED


def test_what_the_thread_hears_reaches_the_runner() -> None:
    store = Store(fakeredis.FakeRedis())
    with lease(store, interval=0.05) as held:
        held.renew(Progress(3, 30))
        (job,) = runs_of(store)
        store.execute(ops.cancel(job.id, "me"))
        wait_for(lambda: held._cancelled, 10)
        with pytest.raises(Stopped):
            held.renew(Progress(3, 30))


def test_a_thread_that_dies_ends_the_run() -> None:
    store = Store(fakeredis.FakeRedis())
    with lease(store, interval=0.05) as held:
        held.renew(Progress(3, 30))
        held._renew = lambda: 1 / 0  # type: ignore[method-assign,assignment]
        wait_for(lambda: held._died, 10)
        with pytest.raises(RuntimeError, match="lease died"):
            held.renew(Progress(3, 30))


def test_no_thread_is_left_behind() -> None:
    store = Store(fakeredis.FakeRedis())
    with lease(store) as held:
        held.renew(Progress(3, 30))
        assert held._thread.is_alive()
    assert not held._thread.is_alive()


# A run that a worker leads


class Run:
    """A run of three shards that ``leader`` leads; the test is the worker."""

    def __init__(self, folder: Path) -> None:
        self.store, self.told = TakenStore(), False
        self.output = Output(str(folder))
        shards = [Shard([Piece(b"a", i, i + 1, 10)], 10) for i in range(3)]
        write_plan(self.output, iter(shards), lambda *_: None)
        job = Job(Kind.EMBED_DATASET, "m", 0, Lane.BULK, owner="me", ttl=60_000)
        self.id = job.id
        self.store.execute(runs.accept_run(runs.RunSubmission(job, runs.RunRequest(["/s"], str(folder)), 10)))
        self.runner = self.lead("leader")

    def lead(self, worker: str) -> Runner:
        self.store.execute(ops.beat(worker, b"", 60, []))
        (claimed,) = self.store.execute(ops.claim([self.id], worker, 9, ops.Suspicion.ALL))
        assert claimed.job
        self.store.execute(ops.beat(WORKER, ABOUT, 60, []))
        return Runner(
            Settings(),
            self.output,
            PLAN,
            self.store,
            owner="me",
            should_stop=lambda: self.told,
            show=lambda _: None,
            retry=RetryPolicy(),
            lead=WorkerLead(self.id, "me", worker, confined=True),
        )

    def shards(self) -> list[Job]:
        return [self.store.execute(ops.view(job_id)).job for job_id in dict.fromkeys(self.store.sent)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    it = Run(tmp_path)
    assert it.runner.step()
    return it


def test_its_shards_wait_where_no_earlier_release_looks(run: Run) -> None:
    names = {shard.model for shard in run.shards()}
    assert names == {runs.led("m")}
    assert not run.store.client.keys("cq:queued:m:bulk")
    assert not run.store.client.keys("cq:open:m")
    (claimed,) = run.store.execute(ops.claim([run.shards()[0].id], WORKER, 3))
    assert claimed.inputs
    assert ShardReference.from_inputs(claimed.inputs).confined


def test_a_shard_of_a_command_says_nothing_of_confinement() -> None:
    """So that release 0.1 reads it as before."""
    assert ShardReference("/o", "p", 3).to_inputs().items == [b'{"output":"/o","plan":"p","shard":3}']


def test_its_progress_is_in_the_record_and_its_counts_are_the_heartbeats(run: Run) -> None:
    job = run.store.execute(ops.view(run.id)).job
    assert job.total == 30
    assert job.progress
    assert job.progress["shards"]["total"] == 3
    run.store.execute(ops.beat("leader", b"", 60, [(run.id, 4, 1)]))
    run.runner._beat(force=True)
    job = run.store.execute(ops.view(run.id)).job
    assert (job.done, job.failed) == (4, 1)


def stop(run: Run) -> None:
    run.told = True


def lose(run: Run) -> None:
    run.store.execute(ops.release([run.id], "leader"))
    run.store.execute(ops.beat("next", b"", 60, []))
    run.store.execute(ops.claim([run.id], "next", 9))


@pytest.mark.parametrize("end", [stop, lose])
def test_a_leader_that_hands_over_leaves_its_shards_to_the_next(run: Run, end: Callable[[Run], None]) -> None:
    before = [shard.id for shard in run.shards()]
    assert len(before) == 3
    end(run)
    run.runner._beaten = float("-inf")
    outcome = run.runner.run()
    assert outcome.stopped
    assert [shard.state for shard in run.shards()] == [State.QUEUED] * 3
    assert run.store.execute(ops.view(run.id)).job.state is State.RUNNING
    run.told = False
    run.store.execute(ops.release([run.id], "leader" if end is stop else "next"))
    assert run.lead("third").step()
    assert [shard.id for shard in run.shards()] == before, "the next one adopts them"


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_run_that_has_ended_takes_its_shards_with_it(run: Run, how: str) -> None:
    if how == "cancelled":
        run.store.execute(ops.cancel(run.id, "me"))
    else:
        run.store.client.hset(f"cq:job:{run.id}", "deadline", 1)
        run.store.execute(runs.reconcile_runs(3, 60))
    run.runner._beaten = float("-inf")
    outcome = run.runner.run()
    assert outcome.stopped
    assert {shard.state for shard in run.shards()} == {State.CANCELLED}
    run.runner.close()
    assert run.store.execute(ops.view(run.id)).job.state == how


# Whose an output is


def test_an_output_is_one_keys(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    claim_output(output, OPEN)
    assert not (tmp_path / "out").exists()
    claim_output(output, "one")
    claim_output(output, "one")
    with pytest.raises(ForeignOutput, match="another key"):
        claim_output(output, "two")
    check_empty(output)


# The output's lock


def test_the_next_leader_waits_for_the_output(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    with locked(output):
        with pytest.raises(OutputError, match="another run is at work"), locked(output):
            pass
        began = time.monotonic()
        with pytest.raises(OutputError, match="another run is at work"), locked(output, 0.3):
            pass
        assert time.monotonic() - began >= 0.3
        with pytest.raises(NotStarted), locked(output, 60, lambda: True):
            pass
    with locked(output, 60):
        pass
    with pytest.raises(OutputError, match="cannot be written"), locked(output):
        raise OSError(28, "no room")
