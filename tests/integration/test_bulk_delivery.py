"""A bulk run ends as if nothing had happened, whatever is killed in between."""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import STAGING, Output
from clip_queue.bulk.output.shard_reference import ShardReference
from clip_queue.bulk.run.embed import embed
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.shared import ops
from clip_queue.shared.broker import TASK, celery_app, queue_name
from clip_queue.shared.job import Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from tests import datasets
from tests.bulk_command import Embed, count_complete
from tests.harness import Service, stack, wait_for
from tests.outputs import checksums, strays, table
from tests.team import Team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = 40
SHARDS = 9  # of five rows, with the four that are broken
PASS = 0.3  # seconds that a forward pass takes longer while a test breaks things
LOST = 60.0  # seconds that the store may take to notice a death, on a loaded machine
ATTEMPTS = 2


@pytest.fixture(scope="module")
def pair_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with (
        pytest.MonkeyPatch.context() as patch,
        stack(tmp_path_factory.mktemp("bulk pair"), lease=2, drain_timeout=20, max_attempts=ATTEMPTS) as it,
    ):
        patch.setenv("OMP_NUM_THREADS", "1")  # bytes are the same for the same number of threads
        # Every write is on disk before it is answered, so that even kill -9 may not lose one.
        it.valkey.client().config_set("appendfsync", "always")
        it.valkey.command += ["--appendfsync", "always"]
        yield Team.start(it, 2)


@pytest.fixture
def pair(pair_stack: Team) -> Team:
    """Two workers on one core each, quick to be missed."""
    pair_stack.heal()
    return pair_stack


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    return datasets.folder(tmp_path_factory.mktemp("bulk source") / "in", ROWS)


@pytest.fixture(scope="module")
def whole(pair_stack: Team, source: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checksums of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("bulk whole") / "out"
    assert run(pair_stack, source.url, output).status == 3
    return checksums(output)


def run(team: Team, url: str, output: Path, **more: object) -> Report:
    options: dict[str, object] = {"shard_size": 5, "batch_size": 2, **more}
    return embed(url, str(output), redis_url=team.stack.valkey.url, settings=settings(), **options)  # type: ignore[arg-type]


def settings() -> Settings:
    return Settings(precision="fp32", max_attempts=ATTEMPTS)


def command(team: Team, folder: Path, url: str, output: Path, *options: object, name: str = "embed") -> Embed:
    return Embed(folder, url, output, "--shard-size", 5, "--batch-size", 2, *options, name=name, env=team.stack.env())


@contextmanager
def under_way(team: Team, url: str, output: Path, **more: object) -> Iterator[Future[Report]]:
    """A run of slow passes, in the middle: some of its shards are whole."""
    over = threading.Event()
    team.faults.delay(PASS)
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(run, team, url, output, should_stop=over.is_set, **more)
        try:
            wait_for(lambda: count_complete(output) >= 1 or report.done(), 120, "a first shard")
            yield report
        finally:
            over.set()


def all_there(output: Path, source: datasets.Dataset, whole: dict[str, str]) -> None:
    assert checksums(output) == whole
    assert strays(output) == []
    assert [row["image_path"] for row in table(output)] == [name for name, _, _ in source.good]
    assert [row["image_path"] for row in table(output, "errors")] == source.bad


def at_work(team: Team) -> Service:
    """A worker that is in the middle of a pass."""
    before = len(team.faults.passes())
    wait_for(lambda: len(team.faults.passes()) > before, 60, "a pass")
    pid = team.faults.passes()[-1].pid
    return next(worker for worker in team.workers if worker.pid == pid)


def jobs(team: Team, kind: Kind) -> list[Job]:
    """What the store knows of a kind."""
    store = team.store()
    try:
        found = [store.client.hgetall(key) for key in store.client.scan_iter("cq:job:*", count=1000)]
    finally:
        store.close()
    there = [ops.record(fields) for fields in found if fields]  # one may expire between the two looks
    return [job for job in there if job.kind is kind]


# What may be killed


def test_a_worker_killed_in_mid_shard_costs_no_row(
    pair: Team, source: datasets.Dataset, whole: dict[str, str], tmp_path: Path
) -> None:
    with under_way(pair, source.url, tmp_path / "out") as report:
        at_work(pair).kill()
        pair.tend()
        assert report.result().status == 3
    all_there(tmp_path / "out", source, whole)


def test_a_terminated_worker_gives_its_shards_back_at_once(
    pair: Team, source: datasets.Dataset, whole: dict[str, str], tmp_path: Path
) -> None:
    before = {job.id for job in jobs(pair, Kind.EMBED_SHARD)}
    with under_way(pair, source.url, tmp_path / "out") as report:
        pair.faults.delay(2)
        worker = at_work(pair)
        began = time.monotonic()
        assert worker.stop(timeout=60) == 0
        # The pass under way, and no more of the shard.
        assert time.monotonic() - began < 15
        pair.tend()
        pair.faults.delay(PASS)
        assert report.result().status == 3
    all_there(tmp_path / "out", source, whole)
    mine = [job for job in jobs(pair, Kind.EMBED_SHARD) if job.id not in before]
    assert [job.attempts for job in mine] == [1] * SHARDS, "a shard given back has not lost a worker"


def test_a_valkey_that_was_killed_has_lost_no_shard(
    pair: Team, source: datasets.Dataset, whole: dict[str, str], tmp_path: Path
) -> None:
    pids = [worker.pid for worker in pair.workers]
    with under_way(pair, source.url, tmp_path / "out") as report:
        pair.stack.valkey.kill()
        wait_for(lambda: "no heartbeat" in pair.workers[0].tail(), 60, "a worker to miss it")
        pair.stack.valkey.start()
        assert report.result().status == 3
    all_there(tmp_path / "out", source, whole)
    assert [worker.pid for worker in pair.workers if worker.alive] == pids, "nobody needed a restart"


def test_a_killed_commands_shards_are_done_and_adopted_and_a_second_one_is_refused_meanwhile(
    pair: Team, source: datasets.Dataset, whole: dict[str, str], tmp_path: Path
) -> None:
    """By the real command, on a Redis that was given."""
    output = tmp_path / "out"
    before = {job.id for kind in (Kind.EMBED_DATASET, Kind.EMBED_SHARD) for job in jobs(pair, kind)}
    passed = len(pair.faults.passes())
    pair.faults.delay(1.5)  # the run outlasts the start of two more commands
    first, second = (command(pair, tmp_path, source.url, output, name=name) for name in ("first", "second"))
    first.start()
    first.in_the_middle(more=1)
    second.start()
    assert second.ended() == 1
    assert f"another run is at work in {output}: wait for it, or stop it" in second.said
    assert first.alive
    first.kill()
    left = count_complete(output)
    wait_for(lambda: count_complete(output) > left, 60, "a shard that nobody waits for to be done")
    second.start()
    assert second.ended() == 3, second.said
    all_there(output, source, whole)
    shards = [job for job in jobs(pair, Kind.EMBED_SHARD) if job.id not in before]
    assert len(shards) == SHARDS, "what ran already was adopted"
    computed = [text for p in pair.faults.passes()[passed:] for text in p.items]
    assert sorted(computed) == sorted(caption for _, _, caption in source.good if caption), "nothing was done twice"

    def runs() -> list[State]:
        mine = [job for job in jobs(pair, Kind.EMBED_DATASET) if job.id not in before]
        return [job.state for job in sorted(mine, key=lambda job: job.created)]

    wait_for(lambda: runs() == [State.FAILED, State.SUCCEEDED], LOST, "the killed command's run to be given up")
    led = [job for job in jobs(pair, Kind.EMBED_DATASET) if job.id not in before]
    why = "The command that led this run is gone; the same command again goes on with it."
    assert [job.error["message"] for job in led if job.error] == [why]


def test_a_command_that_hears_ctrl_c_twice_ends_at_once_even_if_the_store_hangs(
    pair: Team, source: datasets.Dataset, whole: dict[str, str], tmp_path: Path
) -> None:
    pair.faults.delay(PASS)
    it = command(pair, tmp_path, source.url, tmp_path / "out")
    it.start()
    it.in_the_middle(more=1)
    pair.stack.valkey.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        wait_for(lambda: it.signal(signal.SIGINT) or not it.alive, 60, "its end")
        assert time.monotonic() - began < 2
        assert it.ended() == 130
    finally:
        pair.stack.valkey.signal(signal.SIGCONT)
    assert it.start().ended() == 3, it.said
    all_there(tmp_path / "out", source, whole)


def test_a_command_that_hears_ctrl_c_ends_soon_and_its_shards_are_given_back(
    pair: Team, source: datasets.Dataset, whole: dict[str, str], tmp_path: Path
) -> None:
    before = {job.id for job in jobs(pair, Kind.EMBED_SHARD)}
    pair.faults.delay(PASS)
    it = command(pair, tmp_path, source.url, tmp_path / "out")
    it.start()
    it.in_the_middle(more=1)
    began = time.monotonic()
    it.signal(signal.SIGINT)
    assert it.ended() == 130
    assert time.monotonic() - began < 10
    assert "To go on:\n  clip-queue embed" in it.said
    states = {job.state for job in jobs(pair, Kind.EMBED_SHARD) if job.id not in before}
    assert states == {State.SUCCEEDED, State.CANCELLED}
    wait_for(lambda: not (tmp_path / "out" / ".aside").exists(), 30, "the workers to let go")
    assert it.start().ended() == 3, it.said
    all_there(tmp_path / "out", source, whole)


# What else may go wrong


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
    send(pair, [ops.Submission(job, inputs, 10**6) for job in copies])
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


def send(team: Team, submissions: list[ops.Submission]) -> None:
    """Accept bulk jobs, and ring for each more often than it needs."""
    store, sender = team.store(), celery_app(team.settings(), publisher=True)
    store.execute(ops.accept(submissions))
    queue = queue_name("emoji-mini", Lane.BULK)
    for job_id in 3 * [s.job.id for s in submissions]:
        sender.send_task(TASK, ("emoji-mini", Lane.BULK, [job_id]), queue=queue, retry=False)
    sender.close()
    store.close()


def test_a_shard_whose_message_comes_again_and_again_is_done_once(
    pair: Team, source: datasets.Dataset, whole: dict[str, str], tmp_path: Path
) -> None:
    sender, passed = celery_app(pair.settings(), publisher=True), len(pair.faults.passes())
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
