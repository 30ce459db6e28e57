"""The job door: cancelling, deadlines and lanes; whose a job is, lists, repeats."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.jobs_api import ended, look, moment, post, submit, submit_texts, succeeded
from tests.team import Team
from tests.wire import ok, refused

pytestmark = pytest.mark.timeout(400)

KEYS = ("key-of-one", "key-of-another")


@pytest.fixture(scope="module")
def strict(solo_stack: Team) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of an API with keys, each with another key."""
    solo_stack.heal()  # the file before may have left its worker broken
    api = solo_stack.another_api(api_keys=",".join(KEYS))
    with api.client() as one, api.client() as another:
        for client, key in zip((one, another), KEYS, strict=True):
            client.headers["Authorization"] = f"Bearer {key}"
        yield one, another
    api.stop()


# Cancelling, and other ends


def test_a_queued_job_that_is_cancelled_never_runs(solo: Team) -> None:
    with solo.busy():
        job = submit_texts(solo.http, "never to be computed")
        answer = solo.http.delete(f"/jobs/{job}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        assert answer.json()["error"]["code"] == "cancelled"
    succeeded(solo.http, submit_texts(solo.http, "behind the cancelled one"))
    assert solo.faults.computed("never to be computed") == 0
    assert look(solo.http, job)["state"] == "cancelled"


def test_a_running_job_that_is_cancelled_stops_at_the_next_item(solo: Team) -> None:
    solo.faults.delay(0.3)
    texts = [f"to be stopped {i}" for i in range(800)]
    job = submit_texts(solo.http, *texts)
    solo.at_work_on(texts[0])
    assert solo.http.delete(f"/jobs/{job}").status_code == 200
    # The next job is at work as soon as the cancelled one is out of the way.
    follower = submit_texts(solo.http, "follows the stopped one")
    succeeded(solo.http, follower)
    computed = sum(map(solo.faults.computed, texts))
    assert computed < 400, "a hundred passes of 0.3 s would have been needed for all"
    solo.faults.clear()
    succeeded(solo.http, submit_texts(solo.http, "a little later"))
    assert sum(map(solo.faults.computed, texts)) == computed


def test_a_job_that_has_ended_cannot_be_cancelled(solo: Team) -> None:
    job = submit_texts(solo.http, "too late to cancel")
    before = ended(solo.http, job)
    assert "succeeded" in refused(solo.http.delete(f"/jobs/{job}"), 409)["message"]
    assert ended(solo.http, job) == before


def test_a_deadline_ends_a_job_queued_or_running(solo: Team) -> None:
    with solo.busy():
        queued = submit_texts(solo.http, "late in line", deadline_s=0.5)
        document = ended(solo.http, queued)
        assert (document["state"], document["error"]["code"]) == ("expired", "late")
        assert document["attempts"] == 0
    solo.faults.delay(0.5)
    running = submit_texts(solo.http, *(f"late at work {i}" for i in range(200)), deadline_s=2)
    document = ended(solo.http, running)
    assert (document["state"], document["attempts"]) == ("expired", 1)
    assert document["items"]["done"] < 200
    assert solo.faults.computed("late in line") == 0


def test_an_interactive_job_overtakes_the_background(solo: Team) -> None:
    with solo.busy(delay=0.5) as running:
        job = submit_texts(solo.http, "in a hurry", priority="interactive")
        assert ended(solo.http, job)["priority"] == "interactive"
        assert {look(solo.http, blocker)["state"] for blocker in running} == {"running"}


# Ownership, lists, repeats


def test_another_keys_job_does_not_exist(solo: Team, strict: tuple[httpx.Client, httpx.Client]) -> None:
    one, another = strict
    job = submit_texts(one, "mine alone")
    succeeded(one, job)
    for path in (f"/jobs/{job}", f"/jobs/{job}/result", f"/jobs/{job}/events"):
        assert one.get(path).status_code == 200
        hidden, nothing = another.get(path), another.get(path.replace(job, "0" * 32))
        assert hidden.status_code == nothing.status_code == 404
        assert hidden.json()["message"].replace(job, "") == nothing.json()["message"].replace("0" * 32, "")
    assert another.delete(f"/jobs/{job}").status_code == 404
    assert one.delete(f"/jobs/{job}").status_code == 409
    assert job not in {j["id"] for j in ok(another.get("/jobs"))["jobs"]}
    with httpx.Client(base_url=one.base_url, trust_env=False) as nobody:
        assert nobody.get(f"/jobs/{job}").status_code == 401


def test_ids_say_nothing_and_cannot_be_guessed(solo: Team) -> None:
    ids = [submit_texts(solo.http, f"id {i}") for i in range(8)]
    assert all(len(i) == 32 and int(i, 16) >= 0 for i in ids)
    bits = [(int(a, 16) ^ int(b, 16)).bit_count() for a in ids for b in ids if a < b]
    assert min(bits) > 24, "128 random bits differ in 64 or so"
    for unknown in ("0" * 32, "x", ids[0][:-1], ids[0].upper() + "a"):
        assert solo.http.get(f"/jobs/{unknown}").status_code == 404


def test_ones_jobs_are_listed_newest_first_page_by_page_and_by_state(
    solo: Team, strict: tuple[httpx.Client, httpx.Client]
) -> None:
    _, http = strict
    before = {j["id"] for j in ok(http.get("/jobs", params={"limit": 100}))["jobs"]}
    ids = [submit_texts(http, f"listed {i}") for i in range(7)]
    bad = submit_texts(http, "word " * 200)
    for job in (*ids, bad):
        ended(http, job)
    pages: list[list[str]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = ok(http.get("/jobs", params={"limit": 3, "cursor": cursor}))
        assert all(j["result"] is None for j in page["jobs"])
        pages.append([j["id"] for j in page["jobs"]])
        cursor = page["cursor"]
    listed = [i for page in pages for i in page if i not in before]
    assert all(len(page) <= 3 for page in pages)
    assert len(listed) == len(set(listed))
    assert set(listed) == {*ids, bad}
    created = [moment(look(http, i)["created"]) for i in listed]
    assert created == sorted(created, reverse=True)
    failed = ok(http.get("/jobs", params={"state": "failed"}))["jobs"]
    assert [j["id"] for j in failed if j["id"] not in before] == [bad]
    assert http.get("/jobs", params={"state": "nonsense"}).status_code == 422
    assert http.get("/jobs", params={"limit": 101}).status_code == 422
    assert http.get("/jobs", params={"cursor": "nonsense"}).status_code == 422
    assert ok(http.get("/jobs", params={"cursor": f"0:{'0' * 32}"})) == {"jobs": [], "cursor": None}


def test_a_repeated_submission_gets_the_first_ones_job(solo: Team, strict: tuple[httpx.Client, httpx.Client]) -> None:
    one, another = strict
    body = {"task": "embed_text", "text": "once only"}
    header = {"Idempotency-Key": "order-66"}
    first = submit(one, header, **body)
    again = post(one, header, **body)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    succeeded(one, first["id"])
    later = post(one, header, **body)
    assert (later.status_code, later.json()["id"], later.json()["state"]) == (200, first["id"], "succeeded")
    refused(post(one, header, task="embed_text", text="another body"), 422)
    assert solo.faults.computed("once only") <= 1
    assert submit(another, header, **body)["id"] != first["id"], "a key is its owner's"


def test_repeats_at_the_same_time_become_one_job(solo: Team) -> None:
    header = {"Idempotency-Key": "all at once"}
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(post, solo.http, header, task="embed_text", text="at once") for _ in range(16)]
        got = [answer.result() for answer in answers]
    assert sorted(r.status_code for r in got) == [200] * 15 + [202]
    assert len({r.json()["id"] for r in got}) == 1
