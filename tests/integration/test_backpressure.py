"""Two lanes, and a door that says when it is full."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import httpx
import pytest

from clip_queue.shared.job import State
from tests.harness import wait_for
from tests.jobs_api import ended, look, post, submit, submit_texts, succeeded
from tests.team import Team
from tests.wire import embed_texts, refused, vectors

pytestmark = pytest.mark.timeout(400)

LIMIT = 2500  # a little more than the two jobs that keep the lone worker busy


@pytest.fixture(scope="module")
def narrow(solo_stack: Team) -> Iterator[httpx.Client]:
    """A client of an API with a low limit of unfinished items."""
    solo_stack.heal()  # the file before may have left its worker broken
    api = solo_stack.another_api(max_queued_items=LIMIT)
    with api.client() as client:
        yield client
    api.stop()


def full(response: httpx.Response) -> int:
    """The Retry-After of a 429."""
    assert f"limit {LIMIT}" in refused(response, 429)["message"]
    return int(response.headers["retry-after"])


def test_past_the_limit_a_job_is_refused_until_the_measured_rate_will_have_made_room(
    solo: Team, narrow: httpx.Client
) -> None:
    def rate() -> float:
        """As the API has it: it reads what the worker has measured once a second."""
        return sum(worker["rate"] for worker in narrow.get("/status").json()["workers"])

    with solo.busy(delay=0.5):
        wait_for(lambda: 0 < rate() < 40, 60, "the worker to have measured that it is slow")
        few, many = ([f"too many {i}" for i in range(n)] for n in (501, 1000))
        for texts in few, many:
            told, used = 0, 0.0
            while rate() != used:  # else it was read anew meanwhile
                used, told = rate(), full(post(narrow, task="embed_text", text=texts))
            assert told == min(60, ceil(len(texts) / used))
        fits = submit(narrow, task="embed_text", text=["fits"] * 400)["id"]
        assert full(post(narrow, task="embed_text", text=few)) > 1
        # What is cancelled makes room.
        narrow.delete(f"/jobs/{fits}")
        narrow.delete(f"/jobs/{submit(narrow, task='embed_text', text=few[:499])['id']}")
    assert solo.faults.computed("too many 0") == 0
    succeeded(narrow, submit_texts(narrow, "room again"))


def test_a_full_background_lane_does_not_refuse_interactive_requests(solo: Team, narrow: httpx.Client) -> None:
    with solo.busy(delay=0.2):
        full(post(narrow, task="embed_text", text=["x"] * 1000))
        assert vectors(embed_texts(narrow, ["asked meanwhile"])).shape == (1, 128)


def test_background_work_makes_an_interactive_request_wait_for_one_pass_at_most(solo: Team) -> None:
    delay = 1.0
    with solo.busy(delay=delay) as running:
        waits = []
        for i in range(4):
            answer = embed_texts(solo.http, [f"in a hurry {i}"])
            assert answer.status_code == 200
            stages = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
            waits.append(float(stages["wait"]) / 1000)
        assert {look(solo.http, job)["state"] for job in running} == {State.RUNNING}
    assert max(waits) < delay + 0.5, "more than the pass that was under way"


def test_a_job_larger_than_the_limit_is_taken_when_nothing_else_waits(solo: Team) -> None:
    api = solo.another_api(max_queued_items=2)
    with api.client() as http:
        texts = ["larger", "than", "the limit"]
        with solo.busy():
            assert post(http, task="embed_text", text=texts).status_code == 429
        # What was cancelled leaves the lane at once.
        assert ended(http, submit_texts(http, *texts))["state"] == "succeeded"
    api.stop()
