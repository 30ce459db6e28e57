"""Whose turn it is: requests and jobs go before bulk, on the same workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bulk_team import crowd
from tests.jobs_api import ended, look, post, submit_texts
from tests.team import Team
from tests.wire import embed_texts, vectors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def crowded(solo: Team, tmp_path: Path) -> Iterator[None]:
    """The only worker has 100,000 rows before it, in passes of half a second."""
    with crowd(solo, tmp_path):
        yield


def passes_before(team: Team, began: int, text: str) -> int:
    """Passes begun after ``began`` of them and before the one that has ``text``."""
    return next(i for i, p in enumerate(team.faults.passes()[began:]) if text in p.items)


@pytest.mark.usefixtures("crowded")
def test_requests_and_jobs_go_before_bulk_after_the_pass_under_way(solo: Team) -> None:
    began = len(solo.faults.passes())
    asked = time.monotonic()
    assert vectors(embed_texts(solo.http, ["asked amid bulk"])).shape == (1, 128)
    seconds = time.monotonic() - asked
    assert passes_before(solo, began, "asked amid bulk") <= 2
    assert seconds < 10, "a pass of bulk, its own, and a slow machine; the shard has 1,250 passes"
    began = len(solo.faults.passes())
    texts = [f"{i} of a job amid bulk" for i in range(20)]
    job = submit_texts(solo.http, *texts)
    assert ended(solo.http, job, 30)["state"] == "succeeded"
    of_it = [bool(set(p.items) & set(texts)) for p in solo.faults.passes()[began:]]
    first, last = of_it.index(True), max(i for i, mine in enumerate(of_it) if mine)
    assert first <= 4, "what it takes to get there"
    assert of_it[first:last].count(False) <= 2, f"bulk went between: {of_it}"


@pytest.mark.usefixtures("crowded")
def test_rows_of_bulk_take_no_room_in_the_queue_and_bulk_is_not_for_the_asking(solo: Team) -> None:
    api = solo.another_api(max_queued_items=10)
    with api.client() as http:
        job = submit_texts(http, *(f"{i} beside 100,000 rows" for i in range(10)))
        assert look(http, job)["state"] in ("queued", "running", "succeeded")
        refused = post(http, task="embed_text", text="x", priority="bulk")
        assert refused.status_code == 422
        assert "priority" in refused.text
        assert all(word in refused.text for word in ("interactive", "background")), "it says what there is"
        assert post(http, task="embed_shard", text="x").status_code in (400, 422)
    api.stop()
