"""A run on a team's workers: begun, looked at in the middle, and compared with one that nothing happened to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from clip_queue.bulk.run.embed import embed
from clip_queue.bulk.run.report import Report
from clip_queue.shared import ops
from clip_queue.shared.job import Job, Kind
from clip_queue.shared.settings import Settings
from tests import datasets
from tests.bulk_command import Embed, count_complete
from tests.harness import Service, wait_for
from tests.outputs import checksums, strays, table
from tests.team import Team

ROWS = 40
SHARDS = 9  # of five rows, with the four that are broken
PASS = 0.3  # seconds that a forward pass takes longer while a test breaks things
LOST = 60.0  # seconds that the store may take to notice a death, on a loaded machine
ATTEMPTS = 2


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


def submissions(team: Team, before: set[str]) -> dict[int, list[Job]]:
    """The jobs of each shard that are not ``before``, in the order of their submission."""
    store = team.store()
    try:
        keys = [key for key in store.client.scan_iter("cq:job:*", count=1000) if key[7:].decode() not in before]
        found = [fields for key in keys if (fields := store.client.hgetall(key)) and b"idem" in fields]
    finally:
        store.close()
    turns: dict[int, dict[int, Job]] = {}
    for fields in found:
        if (job := ops.record(fields)).kind is Kind.EMBED_SHARD:
            _, shard, turn = fields[b"idem"].decode().rsplit(":", 2)
            turns.setdefault(int(shard), {})[int(turn)] = job
    return {shard: [job for _, job in sorted(of.items())] for shard, of in turns.items()}


@contextmanager
def crowd(team: Team, folder: Path) -> Iterator[None]:
    """A worker has 100,000 rows of bulk before it, in passes of half a second; 1,250 of them make a shard."""
    path = folder / "many.txt"
    path.write_text("\n".join(f"row {i}" for i in range(100_000)))
    over = threading.Event()
    team.faults.delay(0.5)
    before = len(team.faults.passes())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            run, team, str(path), folder / "out", batch_size=8, should_stop=over.is_set, shard_size=10_000
        )
        try:
            wait_for(lambda: len(team.faults.passes()) >= before + 4 or running.done(), 120, "bulk passes")
            assert not running.done()
            yield
        finally:
            over.set()
            team.faults.clear()
            running.result()
