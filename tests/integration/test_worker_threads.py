"""A worker's threads: bulk and background work together never have all of them, however few there are."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.bulk_team import crowd
from tests.harness import stack, wait_for
from tests.jobs_api import look, submit_texts
from tests.team import Team
from tests.wire import embed_texts, vectors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("threads", [2])  # the fewest that may be set
def test_a_request_is_answered_beside_a_shard_and_a_job_that_take_long(tmp_path: Path, threads: int) -> None:
    with stack(tmp_path, worker_threads=threads) as it:
        team = Team.start(it, 1)
        with crowd(team, tmp_path):
            job = submit_texts(team.http, *(f"{i} of a long job" for i in range(1000)))
            wait_for(lambda: look(team.http, job)["state"] == "running", 120, "the job to take a thread as well")
            for n in range(3):
                asked, began = time.monotonic(), len(team.faults.passes())
                assert vectors(embed_texts(team.http, [f"asked amid both, {n}"])).shape == (1, 128)
                assert time.monotonic() - asked < 15, "two passes and a slow machine; shard and job have hundreds"
                of_it = [f"asked amid both, {n}" in each.items for each in team.faults.passes()[began:]]
                assert of_it.index(True) <= 3
            assert look(team.http, job)["state"] == "running"
            team.http.delete(f"/jobs/{job}")
