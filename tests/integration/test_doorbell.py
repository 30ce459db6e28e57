"""A busy worker and an idle one: work for which the busy one has no hand free is the idle one's at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import stack
from tests.jobs_api import ended, submit_texts
from tests.team import START, Team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

JOBS = 12


def test_no_job_waits_for_the_reconciler_while_a_worker_is_idle(tmp_path: Path) -> None:
    with stack(tmp_path, lease=8) as it:
        team = Team.start(it, 1)
        with team.busy(delay=0.6):
            idle = it.worker("tests.faulty")
            it.ready(idle, timeout=START)
            for n in range(JOBS):
                assert ended(team.http, submit_texts(team.http, f"job {n}"), 60)["state"] == "succeeded"
            logs = "".join(service.log.read_text(errors="replace") for service in it.services)
            resent = logs.count("of clip.emoji-mini.background again")
            mine = [p.pid for p in team.faults.passes() if any(text.startswith("job ") for text in p.items)]
    assert resent <= JOBS // 4, f"{resent} of {JOBS} were sent again"
    assert idle.pid in mine
