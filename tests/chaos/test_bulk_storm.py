"""A short storm over bulk runs; ``python -m tests.chaos --bulk`` makes long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.bulk_storm import KINDS, bulk_storm

SEED = 20261124


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_a_storm_a_bulk_run_ends_as_if_nothing_had_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    report = bulk_storm(tmp_path, seed=SEED, seconds=10)
    print(report.table())
    assert report.wrong == []
    # It was a storm, and it hit shards in the middle.
    assert len(report.misfortunes) == KINDS
    assert report.restarts >= 2
    assert report.leaders >= 1
    assert report.again > 0
