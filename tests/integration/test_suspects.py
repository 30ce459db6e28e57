"""After crashes: the many innocent jobs that were in flight are done soon, and the one to blame is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import Service, stack, wait_for
from tests.jobs_api import ended, look, submit_texts
from tests.team import START, Team
from tests.wire import embed_texts, ok

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

JOBS = 300


def submit_all(team: Team) -> list[str]:
    return [submit_texts(team.http, f"innocent {n}", priority="interactive") for n in range(JOBS)]


def kill_in_flight(team: Team, worker: Service, jobs: list[str], attempts: int) -> None:
    """Kill a worker that holds many of the jobs, and start it again."""

    def holds_many() -> bool:
        held = [look(team.http, job)["state"] == "running" for job in jobs[:: JOBS // 20]]
        return sum(held) >= 1 and bool(team.faults.passes())

    wait_for(holds_many, 60, f"jobs in flight, attempt {attempts}")
    worker.kill()
    worker.start()
    team.stack.ready(worker, timeout=START)


def test_three_hundred_innocent_jobs_are_done_soon_after_two_crashes(tmp_path: Path) -> None:
    with stack(tmp_path, interactive_jobs=True) as it:
        team = Team.start(it, 1)
        (worker,) = team.workers
        team.faults.delay(2)
        jobs = submit_all(team)
        kill_in_flight(team, worker, jobs, 1)
        kill_in_flight(team, worker, jobs, 2)
        before = len(team.faults.passes())
        team.faults.delay(0.1)
        ok(embed_texts(team.http, ["fresh"]))  # does not wait behind them
        for job in jobs:
            document = ended(team.http, job, 120)
            assert document["state"] == "succeeded", document
        passes = [p for p in team.faults.passes()[before:] if any(t.startswith("innocent") for t in p.items)]
        assert len(passes) < JOBS / 3, "one at a time"


def test_the_one_to_blame_among_many_is_found_and_the_others_are_done(tmp_path: Path) -> None:
    with stack(tmp_path, interactive_jobs=True) as it:
        team = Team.start(it, 2)
        team.faults.delay(0.2)
        team.faults.poison("poison")
        jobs = submit_all(team)
        killer = submit_texts(team.http, "poison", priority="interactive")

        def over() -> bool:
            team.tend()
            return bool(look(team.http, killer)["state"] == "failed")

        wait_for(over, 200, "the killer to be failed")
        document = look(team.http, killer)
        assert (document["error"]["code"], document["attempts"]) == ("worker_lost", 3)
        team.tend()
        team.faults.delay(0)
        states = [ended(team.http, job, 120)["state"] for job in jobs]
        assert states == ["succeeded"] * JOBS
