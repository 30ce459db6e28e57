"""A bulk run in the store: held by its leader from the start, and ended with it."""

from __future__ import annotations

import fakeredis
import pytest

from clip_queue.bulk.run.progress import Progress
from clip_queue.shared import ops
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.store import Store
from clip_queue.shared.workers import WorkerInfo, workers

MODEL = "m"


@pytest.fixture
def store() -> Store:
    return Store(fakeredis.FakeRedis())


def new() -> Job:
    return Job(Kind.EMBED_DATASET, MODEL, 1_000_000, Lane.BULK, owner="me", ttl=60_000)


def look(store: Store, run: Job) -> Job:
    return store.execute(ops.view(run.id)).job


def test_leading_makes_the_record_and_writes_the_progress(store: Store) -> None:
    run = new()
    assert store.execute(ops.renew_run(run, "leader", 5)) is State.RUNNING
    run.done, run.failed, run.progress = 7, 1, {"rows_per_s": 3}
    assert store.execute(ops.renew_run(run, "leader", 5)) is State.RUNNING
    seen = look(store, run)
    assert (seen.total, seen.done, seen.failed, seen.progress) == (1_000_000, 7, 1, {"rows_per_s": 3})
    assert seen.kind is Kind.EMBED_DATASET
    assert [job.id for job in store.execute(ops.list_jobs("me", State.RUNNING, 10, ""))[0]] == [run.id]
    assert store.execute(workers()) == [], "a leader is no worker"
    assert not store.client.hget("cq:load", f"{MODEL}:bulk"), "a run's rows are no load"


def test_a_run_without_its_leader_has_failed_and_is_not_given_to_a_worker(store: Store) -> None:
    run = new()
    store.execute(ops.renew_run(run, "leader", 5))
    page = store.execute(ops.reconcile(MODEL, 0, 3, 0, 3600))
    assert (page.resend, look(store, run).state) == ({}, State.RUNNING)
    store.execute(ops.deregister("leader"))
    page = store.execute(ops.reconcile(MODEL, 0, 3, 0, 3600))
    ended = look(store, run)
    assert (page.resend, ended.state) == ({}, State.FAILED)
    assert ended.error
    assert "the same command again goes on" in ended.error["message"]
    assert store.execute(ops.renew_run(run, "leader", 5)) is State.FAILED, "what has ended never changes"


def test_a_cancelled_run_tells_its_leader(store: Store) -> None:
    run = new()
    store.execute(ops.renew_run(run, "leader", 5))
    assert store.execute(ops.cancel(run.id, "me")) == (State.CANCELLED, True)
    assert store.execute(ops.renew_run(run, "leader", 5)) is State.CANCELLED


def test_its_leader_ends_a_run(store: Store) -> None:
    run = new()
    store.execute(ops.renew_run(run, "leader", 5))
    assert store.execute(ops.finish([ops.Completion(run.id, State.SUCCEEDED, JobResult(), 9, 1)], "leader")) == [True]
    assert (look(store, run).done, look(store, run).failed) == (9, 1)
    assert not store.client.zrange(f"cq:open:{MODEL}", 0, -1)
    assert int(store.client.hget("cq:load", f"{MODEL}:bulk") or 0) == 0


def test_an_error_of_another_layer_comes_back_as_what_it_is() -> None:
    from clip_queue.bulk.output.errors import OutputError

    error = ClipError.from_wire(OutputError("full").to_wire())
    assert isinstance(error, OutputError)


def test_the_progress_estimates_what_only_reading_tells() -> None:
    progress = Progress(shards=4, rows=None, weight=4000)
    assert progress.total is None
    assert progress.to_json()["eta_s"] is None
    progress.finished({"rows": 90, "failed": 10}, 1000)
    assert progress.total == 400
    progress.underway = [(200, 0), (150, 0)]
    assert progress.total == 450, "never less than what is done"
    for rows in (100, 50, 60):
        progress.finished({"rows": rows, "failed": 0}, 1000)
    progress.underway = []
    assert progress.total == 310


def test_the_busy_share_is_of_the_time_between_two_looks() -> None:
    now = [100.0]
    progress = Progress(shards=1, rows=10, now=lambda: now[0])
    worker = WorkerInfo("w", "h", 1, "cuda:0", 0.0)

    def busy(seconds: float) -> WorkerInfo:
        return WorkerInfo(**{**{f: getattr(worker, f) for f in worker.__dataclass_fields__}, "busy": seconds})

    progress.look_at([busy(50.0)])
    assert (progress.busy, progress.workers, progress.device) == (None, 1, "GPU")
    now[0] += 4
    progress.look_at([busy(53.0)])
    assert progress.busy == 0.75
    progress.look_at([])
    assert progress.workers == 0
