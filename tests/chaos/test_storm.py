"""A short storm; ``make chaos`` runs long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.storm import storm
from tests.chaos.weather import KINDS

SEED = 20261123


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_a_storm_nothing_that_was_accepted_is_lost_or_wrong(tmp_path: Path) -> None:
    report = storm(tmp_path, seed=SEED, seconds=40, pause=(1.0, 3.0))
    print(report.table())
    assert report.lost == []
    assert report.wrong == []
    assert report.left == []
    assert report.silent == 0
    # It was a storm, and there was work in it (hundreds of submissions on two quiet cores).
    assert len(report.misfortunes) == KINDS
    assert report.redeliveries > 0
    assert report.accepted > 10
    assert report.answered > 5
    assert report.failed.keys() <= {"text_too_long"}
