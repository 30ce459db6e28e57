"""What nobody waits for any more costs no forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest

from tests.jobs_api import ended, submit_texts
from tests.team import Team
from tests.wire import embed_texts, refused, vectors

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def under_way(solo: Team) -> Iterator[Future[httpx.Response]]:
    """A pass that has begun and takes a while, and whose caller waits for it."""
    solo.faults.delay(3)
    text = f"a pass under way {uuid4().hex[:4]}"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(embed_texts, solo.http, [text])
        solo.at_work_on(text)
        yield answer


def test_a_request_whose_client_hung_up_before_it_started_is_not_computed(
    solo: Team, under_way: Future[httpx.Response]
) -> None:
    hurried = httpx.Client(base_url=solo.api.url, timeout=httpx.Timeout(0.4, connect=10), trust_env=False)
    with hurried, pytest.raises(httpx.ReadTimeout):
        embed_texts(hurried, ["nobody waits for it"])
    assert vectors(under_way.result()).shape == (1, 128)
    solo.faults.clear()
    assert vectors(embed_texts(solo.http, ["a pass later"])).shape == (1, 128)
    assert solo.faults.computed("nobody waits for it") == 0


def test_a_request_whose_deadline_passed_before_it_started_is_not_computed(
    solo: Team, under_way: Future[httpx.Response]
) -> None:
    job = submit_texts(solo.http, "its deadline passes", priority="interactive", deadline_s=0.5)
    assert ended(solo.http, job)["state"] == "expired"
    assert vectors(under_way.result()).shape == (1, 128)
    solo.faults.clear()
    assert vectors(embed_texts(solo.http, ["another pass later"])).shape == (1, 128)
    assert solo.faults.computed("its deadline passes") == 0


def test_a_synchronous_caller_is_told_at_its_deadline_and_costs_nothing_after(solo: Team) -> None:
    api = solo.another_api(request_timeout=1)
    solo.faults.delay(4)
    with api.client() as http, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(embed_texts, solo.http, ["the slow pass before"])
        solo.at_work_on("the slow pass before")
        message = refused(embed_texts(http, ["late and not computed"]), 504)["message"]
        # The worker or a reconciler may have expired it a moment before.
        if message != "The job's deadline passed before it was done.":
            assert "No result within 1 s; job " in message
            assert message.endswith(("was running.", "was queued."))
        assert under_way.result().status_code == 200
    solo.faults.clear()
    assert vectors(embed_texts(solo.http, ["still another pass later"])).shape == (1, 128)
    assert solo.faults.computed("late and not computed") == 0
    api.stop()
