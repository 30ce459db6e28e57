"""A short storm with each misfortune at least once; ``make chaos`` runs long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.report import Report
from tests.chaos.storm import Plan, storm

SEED = 20261123
PLAN = Plan(SEED, seconds=20, pause=(0.2, 1.0), ttl=900, up_workers=1, skew=(3, 8))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_in_a_storm_nothing_that_was_accepted_is_lost_or_wrong(tmp_path: Path) -> None:
    report = Report()
    try:
        storm(tmp_path, PLAN, report)
    finally:
        print(report.table())
    assert report.lost.quoted == []
    assert report.wrong.quoted == []
    assert report.left.quoted == []
    assert report.silent == 0
    # It was a storm, and there was work in it (hundreds of submissions on two quiet cores).
    assert set(report.expected) <= report.misfortunes.keys()
    assert report.hostile
    assert report.redeliveries > 0
    assert report.accepted > 10
    assert report.answered > 5
    assert report.failed.keys() <= {"text_too_long"}
