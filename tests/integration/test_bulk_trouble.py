"""What else may go wrong in a bulk run: a shard that kills its workers, a full disk, messages and shards twice."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import STAGING, Output
from clip_queue.bulk.output.shard_reference import ShardReference
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.shared import ops, submissions
from clip_queue.shared.broker import celery_app
from clip_queue.shared.job import Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.messages import TASK, queue_name
from tests import datasets
from tests.bulk_command import Embed
from tests.bulk_team import ATTEMPTS, PASS, all_there, jobs, run, under_way
from tests.harness import wait_for
from tests.outputs import checksums, strays, table
from tests.team import Team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_shard_that_kills_its_workers_is_lost_alone_and_the_report_says_so(pair: Team, tmp_path: Path) -> None:
    once = RetryPolicy(submissions=1)  # each death costs a start
    path = tmp_path / "in.txt"
    lines = [f"line {i} of {path.parent.name}" for i in range(24)]
    lines[9] = "poison"
    path.write_text("\n".join(lines))
    pair.faults.poison("poison")
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, pair, str(path), tmp_path / "out", shard_size=4, should_stop=over.is_set, retry=once)
        try:
            wait_for(lambda: pair.tend() or running.done(), 300, "the shard to be given up")
        finally:
            over.set()
    report = running.result()
    assert (report.status, report.complete, report.rows) == (1, 5, 20)
    assert report.lost == {2: f"its worker was lost each of {ATTEMPTS} times"}
    assert pair.faults.computed("poison") == ATTEMPTS
    pair.heal()
    report = run(pair, str(path), tmp_path / "out", shard_size=4)
    assert (report.status, report.rows, report.resumed) == (0, 24, 20)
    assert [row["caption"] for row in table(tmp_path / "out")] == lines
    assert strays(tmp_path / "out") == []


def test_a_shard_whose_job_ends_undone_is_submitted_three_times(pair: Team, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a line\nanother")
    before = {job.id for job in jobs(pair, Kind.EMBED_SHARD)}
    store = pair.store()

    def mine() -> list[Job]:
        return [job for job in jobs(pair, Kind.EMBED_SHARD) if job.id not in before]

    def cancel(_: object) -> None:
        for job in mine():
            store.execute(ops.cancel(job.id, job.owner))

    pair.faults.delay(2)
    report = run(pair, str(tmp_path / "in.txt"), tmp_path / "out", show=cancel)
    store.close()
    assert (report.status, report.lost) == (1, {0: "its job was cancelled each time"})
    assert [job.state for job in mine()] == [State.CANCELLED] * RetryPolicy().submissions


@contextmanager
def no_file_larger_than(size: int, team: Team) -> Iterator[None]:
    """For the workers that run now. (A test has no disk to fill.)"""
    limits = {worker.pid: resource.prlimit(worker.pid, resource.RLIMIT_FSIZE) for worker in team.workers}
    for pid, (_, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        for pid, before in limits.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_run_with_advice_and_leaves_no_half_file(pair: Team, tmp_path: Path) -> None:
    path, output = tmp_path / "in.txt", tmp_path / "out"
    path.write_text("\n".join(f"line {i}" for i in range(3000)))
    options = ("--shard-size", 1500, "--batch-size", 64, "--dtype", "float32")  # 768 KB of vectors a shard
    embed_all = Embed(tmp_path, str(path), output, *options, env=pair.stack.env())
    with no_file_larger_than(600_000, pair):
        assert embed_all.start().ended() == 1
    assert "the output cannot be written: a file may not grow that large: raise the limit" in embed_all.said
    assert "To go on once that is mended:\n  clip-queue embed" in embed_all.said
    assert "Traceback" not in embed_all.said
    assert checksums(output) == {}, "nothing half"
    wait_for(lambda: not (output / ".aside").exists(), 30, "what was begun to be gone: it fills the disk")
    assert embed_all.start().ended() == 0, embed_all.said
    assert [row["caption"] for row in table(output)] == [f"line {i}" for i in range(3000)]
    assert strays(output) == []


def test_a_shard_done_by_two_workers_at_once_is_the_same_shard(
    pair: Team, source: datasets.Dataset, whole: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(pair, source.url, output)
    found = manifest.load(Output(str(output)))
    assert found is not None
    for marker in (output / "shards").iterdir():
        marker.unlink()
    pair.faults.delay(PASS)
    before = len(pair.faults.passes())
    inputs = ShardReference(str(output), found.plan.id, 1).to_inputs()
    copies = [Job(Kind.EMBED_SHARD, "emoji-mini", 5, Lane.BULK, owner="open", ttl=60_000) for _ in range(4)]
    send(pair, [submissions.Submission(job, inputs, 10**6) for job in copies])
    ids = {job.id for job in copies}

    def states() -> set[State]:
        return {job.state for job in jobs(pair, Kind.EMBED_SHARD) if job.id in ids}

    wait_for(lambda: states() == {State.SUCCEEDED}, 60, "all copies to be done")
    assert {p.pid for p in pair.faults.passes()[before:]} == {worker.pid for worker in pair.workers}
    assert [path.name for path in (output / "shards").iterdir()] == ["shard_1.json"]
    assert checksums(output) == whole
    pair.faults.clear()
    assert run(pair, source.url, output).resumed == 5
    all_there(output, source, whole)


def send(team: Team, several: list[submissions.Submission]) -> None:
    """Accept bulk jobs, and ring for each more often than it needs."""
    store, sender = team.store(), celery_app(team.settings())
    store.execute(submissions.accept(several))
    queue = queue_name("emoji-mini", Lane.BULK)
    for job_id in 3 * [s.job.id for s in several]:
        sender.send_task(TASK, ("emoji-mini", Lane.BULK, [job_id]), queue=queue, retry=False)
    sender.close()
    store.close()


def test_a_shard_whose_message_comes_again_and_again_is_done_once(
    pair: Team, source: datasets.Dataset, whole: dict[str, str], tmp_path: Path
) -> None:
    sender, passed = celery_app(pair.settings()), len(pair.faults.passes())
    with under_way(pair, source.url, tmp_path / "out") as report:
        for job in jobs(pair, Kind.EMBED_SHARD):
            message = ("emoji-mini", Lane.BULK, [job.id])
            for _ in range(3):
                sender.send_task(TASK, message, queue=queue_name("emoji-mini", Lane.BULK), retry=False)
        pair.faults.clear()
        assert report.result().status == 3
    sender.close()
    all_there(tmp_path / "out", source, whole)
    computed = [text for p in pair.faults.passes()[passed:] for text in p.items]
    assert sorted(computed) == sorted(caption for _, _, caption in source.good if caption)


def test_a_writer_that_leaves_as_another_comes_does_not_take_its_folder_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, left = Path.mkdir, []

    def make_and_lose(self: Path, *arguments: object, **options: object) -> None:
        make(self, *arguments, **options)  # type: ignore[arg-type]
        if self.name == STAGING and len(left) < 3:
            self.rmdir()  # whoever leaves last removes it
            left.append(self)

    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    Output(str(tmp_path)).write("shards/0", b"x")
    assert len(left) == 3
    assert strays(tmp_path) == []
