"""A bulk run ends as if nothing had happened, whatever is killed in between."""

from __future__ import annotations

import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from clip_queue.shared.job import Kind, State
from tests import datasets
from tests.bulk_command import count_complete
from tests.bulk_team import LOST, PASS, SHARDS, all_there, at_work, command, jobs, submissions, under_way
from tests.harness import wait_for
from tests.team import Team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


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
    shards = submissions(pair, before)
    assert sorted(shards) == [*range(SHARDS)]
    # One that ends between the look at the output and the submission is submitted again; its worker finds it complete.
    for turns in shards.values():
        assert all(0 < one.finished <= next_.created for one, next_ in pairwise(turns)), "what ran already was adopted"
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
