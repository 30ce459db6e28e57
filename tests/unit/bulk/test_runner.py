"""A run's command beside a store in memory: what becomes of shards whose source is away, whose workers are lost, whose
files are not seen, and of a run without workers. The test moves the clock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.markers import scan
from clip_queue.bulk.output.plan_file import write_plan
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.run_lease import LEASE, Stopped
from clip_queue.bulk.run.runner import Runner
from clip_queue.bulk.run.workers import NoWorker
from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError, WorkerLost
from clip_queue.shared.job import Job, JobResult, State
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings
from clip_queue.shared.workers import WorkerInfo
from clip_queue.sources.source import Piece, Shard, Source, SourceAway, SourceError
from tests.taken import TakenStore

INFO = ModelInfo("m", "none", "f", 3, 8, (4, 4), "fp32")
RETRY = RetryPolicy()
WORKER = "w"
ABOUT = WorkerInfo(WORKER, "h", 1, "cpu", models=[INFO], work=["embed_shard"], manifests=2).pack()
EARLIER = WorkerInfo("e", "h", 2, "cpu", models=[INFO], work=["embed_shard"]).pack()  # as 0.1.0 says nothing of it


class Command:
    """A run of shards of ten rows, one if nothing else is said, and a worker whose deeds the test says."""

    def __init__(self, folder: Path, shards: int = 1, **options: Any) -> None:
        self.now, self.told = 1000.0, False
        self.store = TakenStore()
        self.output = Output(str(folder))
        source = Source("/s", "text", images=False, texts=True)
        plan = RunPlan("p", source, INFO, PlanOptions(**options), shards, 10 * shards, 1.0)
        write_plan(self.output, (Shard([Piece(b"a", 0, 10, 10)], 10) for _ in range(shards)), lambda *_: None)
        self.runner = Runner(
            Settings(),
            self.output,
            plan,
            self.store,
            owner="me",
            should_stop=lambda: self.told,
            show=lambda _: None,
            retry=RETRY,
            now=lambda: self.now,
        )

    @property
    def job(self) -> Job:
        """The job that was published last."""
        return self.store.execute(ops.view(self.store.sent[-1])).job

    def claim(self, done: int = 0, failed: int = 0, about: bytes = ABOUT) -> str:
        """A worker takes the shard, and is so far."""
        job_id, worker = self.store.sent[-1], WorkerInfo.unpack(about).id
        (claim,) = self.store.execute(ops.claim([job_id], worker, 3))
        assert claim.job is not None
        self.store.execute(ops.beat(worker, about, 60, [(job_id, done, failed)]))
        return job_id

    def fail(self, error: ClipError, done: int = 0) -> None:
        """A worker takes the shard and fails on it."""
        self.end(State.FAILED, JobResult(error=error.to_wire()), done)

    def end(self, state: State, result: JobResult, done: int = 0, about: bytes = ABOUT) -> None:
        completion = ops.Completion(self.claim(done, about=about), state, result, done)
        assert self.store.execute(ops.finish([completion], WorkerInfo.unpack(about).id)) == [True]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    it = Command(tmp_path)
    assert it.runner.step()
    return it


def test_a_shard_whose_source_is_away_is_tried_again_after_a_pause(command: Command) -> None:
    command.fail(SourceAway("not now"), done=4)
    assert command.runner.step()
    assert command.runner.progress.away
    assert command.runner.progress.done == 0, "nothing of it is kept"
    command.runner.step()
    assert len(command.store.sent) == 1
    command.now += RETRY.source_pause
    command.runner.step()
    assert len(command.store.sent) == 2
    assert command.job.state is State.QUEUED


def test_the_run_ends_once_the_source_has_been_away_too_long(command: Command) -> None:
    def wait() -> None:
        while command.now < 1000 + 2 * RETRY.source_away:
            if command.job.state is State.QUEUED:
                command.fail(SourceAway("not now"))
            command.runner.step()
            command.now += RETRY.source_pause

    with pytest.raises(SourceAway, match="the source has been away for 5 minutes: not now"):
        wait()
    assert RETRY.source_away < command.now - 1000 <= RETRY.source_away + 3 * RETRY.source_pause


@pytest.mark.parametrize(("done", "failed"), [(1, 0), (0, 1)])
def test_a_source_that_gives_rows_is_not_away_however_long_a_shard_takes(
    command: Command, done: int, failed: int
) -> None:
    for _ in range(5):
        command.fail(SourceAway("not now"))
        command.runner.step()
        command.now += RETRY.source_away
        command.runner.step()  # submitted again
        job_id = command.claim(done, failed)
        command.runner.step()
        assert not command.runner.progress.away
        command.now += RETRY.source_away
        command.store.execute(ops.release([job_id], WORKER))


def test_a_shard_whose_workers_are_lost_is_submitted_three_times_and_then_lost(command: Command) -> None:
    for _ in range(RETRY.submissions):
        assert not command.runner.outcome.lost
        command.fail(WorkerLost("gone"))
        command.runner.step()
    assert command.runner.outcome.lost == {0: "its worker was lost each of 9 times"}
    assert len(command.store.sent) == RETRY.submissions
    assert not command.runner.step()


def test_a_shard_whose_job_is_cancelled_each_time_is_lost(command: Command) -> None:
    for _ in range(RETRY.submissions):
        command.store.execute(ops.cancel(command.job.id, "me"))
        command.runner.step()
    assert command.runner.outcome.lost == {0: "its job was cancelled each time"}


def test_a_shard_that_the_store_has_lost_is_submitted_again(command: Command) -> None:
    command.store.client.flushall()
    command.runner.step()
    assert len(command.store.sent) == 2
    assert command.job.state is State.QUEUED


def test_files_that_are_not_seen_are_waited_for_and_then_said_to_be_elsewhere(command: Command) -> None:
    command.end(State.SUCCEEDED, JobResult(), done=10)
    assert command.runner.step()
    command.now += RETRY.marker_unseen
    assert command.runner.step()
    command.now += 1
    assert not command.runner.step()
    reason = "a worker has written it, but not where this command looks: do both see the same output?"
    assert command.runner.outcome.lost == {0: reason}


def test_a_run_without_a_worker_is_given_up_after_ten_minutes(command: Command) -> None:
    command.now += RETRY.no_worker
    command.runner.step()
    command.now += 2
    with pytest.raises(NoWorker, match="no worker has served m for 10 minutes"):
        command.runner.step()


def test_an_output_that_cannot_be_written_ends_the_run_at_once(command: Command) -> None:
    command.fail(OutputError("full"))
    with pytest.raises(OutputError, match="full"):
        command.runner.step()


def test_any_other_failure_of_a_shard_is_its_own(command: Command) -> None:
    command.fail(ClipError("some reason"))
    assert not command.runner.step()
    assert command.runner.outcome.lost == {0: "some reason"}


def test_told_to_stop_it_cancels_what_is_submitted_and_its_own_job(command: Command) -> None:
    command.told = True
    with pytest.raises(Stopped):
        command.runner.step()
    outcome = command.runner.run()
    assert outcome.stopped
    assert command.job.state is State.CANCELLED
    command.runner.close()
    (run,) = command.store.execute(ops.list_jobs("me", None, 10, ""))[0]
    assert run.state is State.CANCELLED


def test_what_this_command_closes_is_no_longer_led(command: Command) -> None:
    command.runner.close(ClipError("why"))
    (run,) = command.store.execute(ops.list_jobs("me", None, 10, ""))[0]
    assert (run.state, run.error and run.error["message"]) == (State.FAILED, "why")
    assert command.store.client.keys("cq:worker:run-*") == []


REFUSED = SourceError("/s/manifest.json cannot be understood (version 2): choose another output")


def test_a_shard_that_has_ended_makes_room_at_once(tmp_path: Path) -> None:
    """Else short shards come in every second look only."""
    it = Command(tmp_path, 40)
    it.runner.step()
    window = list(it.store.sent)
    it.store.execute(ops.claim(window, WORKER, 3))
    failed = JobResult(error=ClipError("bad").to_wire())
    it.store.execute(ops.finish([ops.Completion(job_id, State.FAILED, failed, 0) for job_id in window], WORKER))
    it.runner.step()
    assert len(it.store.sent) == 2 * len(window) > 0
    assert sorted(it.runner.outcome.lost) == list(range(len(window)))


def test_all_submitted_shards_are_looked_at_in_one_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = Command(tmp_path, 40)
    for worker in range(4):
        about = WorkerInfo(f"w{worker}", "h", worker, "cpu", models=[INFO], work=["embed_shard"])
        it.store.execute(ops.beat(about.id, about.pack(), 60, []))
    it.runner.step()
    assert len(it.store.sent) == 16
    execute, trips = it.store.execute, []
    monkeypatch.setattr(it.store, "execute", lambda op: (trips.append(len(op.commands)), execute(op))[1])
    it.runner.step()
    assert trips == [16], "and no other, while no heartbeat is due"


def test_a_shard_that_an_earlier_release_refused_is_given_to_another_worker(tmp_path: Path) -> None:
    it = Command(tmp_path, layout="table")
    it.store.execute(ops.beat(WORKER, ABOUT, 60, []))
    it.runner.step()
    assert it.runner.progress.workers == 1
    for turn in range(1, 3 * RETRY.submissions):  # however often it is quicker
        it.end(State.FAILED, JobResult(error=REFUSED.to_wire()), about=EARLIER)  # it has come a moment ago
        assert it.runner.step()
        assert len(it.store.sent) == turn
        it.now += RETRY.other_worker
        it.store.execute(ops.beat(WORKER, ABOUT, 60, []))
        it.runner.step()
        assert len(it.store.sent) == turn + 1
    assert it.runner.progress.workers == 1, "those that can read the plan"
    it.end(State.FAILED, JobResult(error=REFUSED.to_wire()))
    assert not it.runner.step()
    assert it.runner.outcome.lost == {0: REFUSED.message}, "one of this release says what is so"


def test_a_plan_that_an_earlier_release_reads_is_done_by_its_workers(tmp_path: Path) -> None:
    it = Command(tmp_path)
    it.store.execute(ops.beat("e", EARLIER, 60, []))
    it.runner.step()
    assert it.runner.progress.workers == 1
    it.end(State.FAILED, JobResult(error=ClipError("why").to_wire()), about=EARLIER)
    assert not it.runner.step()
    assert it.runner.outcome.lost == {0: "why"}


def test_with_workers_of_an_earlier_release_alone_a_run_says_so(tmp_path: Path) -> None:
    it = Command(tmp_path, layout="table")
    it.store.execute(ops.beat("e", EARLIER, 60_000, []))
    it.runner.step()
    it.now += RETRY.no_worker + 2
    with pytest.raises(NoWorker, match="no worker of this release has served m for 10 minutes"):
        it.runner.step()


def test_a_listing_of_what_is_done_keeps_the_lease_and_hears_that_it_shall_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume = Resume(tmp_path, monkeypatch, shards=0)
    monkeypatch.setattr("clip_queue.bulk.run.runner.scan", scan)
    for n in range(600):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / f"other_{n}").touch()
    scandir, entries = os.scandir, 0

    def slow(path: str) -> Any:
        if not str(path).startswith(str(tmp_path)):
            return scandir(path)  # of the store's scripts

        @contextmanager
        def listed() -> Iterator[Any]:
            def each() -> Iterator[Any]:
                nonlocal entries
                for entry in found:
                    entries += 1
                    resume.it.now += 0.1
                    yield entry

            with scandir(path) as found:
                yield each()

        return listed()

    monkeypatch.setattr("clip_queue.bulk.output.layout.os.scandir", slow)
    runner = resume.it.runner
    runner._should_stop = lambda: entries >= 500
    assert runner.run().stopped
    assert entries == 500
    assert max(after - before for before, after in pairwise(resume.renewed)) < LEASE / 5
    assert len(resume.renewed) >= 40


class Resume:
    """A run all of whose shards are complete, on a file system where each look takes 0.1 s of the test's clock."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
        self.it = Command(folder)
        marker = {"rows": 1, "failed": 0, "errors": {}, "files": {}, "seconds": {}}
        self.looks, self.renewed = 0, list[float]()

        def slow(output: Output, plan: RunPlan, some: range) -> Iterator[tuple[int, dict[str, Any]]]:
            for shard in range(shards):
                self.it.now += 0.1
                self.looks += 1
                yield shard, {"shard": shard, **marker}

        monkeypatch.setattr("clip_queue.bulk.run.runner.scan", slow)
        renew = self.it.runner._lease.renew

        def renewing(progress: Any) -> None:
            self.renewed.append(self.it.now)
            renew(progress)

        monkeypatch.setattr(self.it.runner._lease, "renew", renewing)
        self.it.store.execute(ops.beat(WORKER, ABOUT, 60, []))


def test_a_resume_over_many_complete_shards_keeps_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = Resume(tmp_path, monkeypatch, shards=600)
    assert not resume.it.runner.step()
    gaps = [after - before for before, after in pairwise(resume.renewed)]
    assert len(gaps) >= 50
    assert max(gaps) < LEASE / 5
    assert (resume.it.runner.report.rows, resume.it.runner.report.complete) == (600, 600)


def test_a_resume_over_many_complete_shards_hears_that_it_shall_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume = Resume(tmp_path, monkeypatch, shards=600)
    runner = resume.it.runner
    runner._should_stop = lambda: resume.looks >= 60
    assert runner.run().stopped
    assert resume.looks <= 61
