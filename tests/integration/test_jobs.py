"""The job door: submit, go away, poll, watch, cancel, list."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import numpy as np
import pytest

from tests.door import ended, look, post, submit, submit_texts, succeeded
from tests.harness import wait_for
from tests.pictures import base64_image, picture
from tests.team import Team
from tests.wire import COMPARE_KEYS, EMBED_KEYS, embed_images, embed_texts, ok, refused, same, vectors

pytestmark = pytest.mark.timeout(400)

SAME = 1e-6  # of a vector's length
PICTURES = [picture(seed) for seed in range(3)]
IMAGES = [base64_image(data) for data in PICTURES]
BROKEN = {"type": "base64", "value": "bm8gcGljdHVyZQ=="}
KEYS = ("key-of-one", "key-of-another")


@pytest.fixture(scope="module")
def strict(solo_stack: Team) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of an API with keys, each with another key."""
    api = solo_stack.another_api(api_keys=",".join(KEYS))
    with api.client() as one, api.client() as another:
        for client, key in zip((one, another), KEYS, strict=True):
            client.headers["Authorization"] = f"Bearer {key}"
        yield one, another
    api.stop()


@pytest.fixture(scope="module")
def brief(solo_stack: Team) -> Iterator[httpx.Client]:
    """A client of an API that keeps results for a moment, waits for a moment, and whose streams beat often."""
    api = solo_stack.another_api(
        "tests.brisk:app", result_ttl=1.5, max_wait=0.5, max_job_items=4, interactive_jobs=False
    )
    with api.client() as client:
        yield client
    api.stop()


def moment(text: str) -> float:
    assert text.endswith("Z")
    return datetime.fromisoformat(text).timestamp()


# Submitting and polling


def test_a_job_is_accepted_at_once_and_its_document_tells_its_life(solo: Team) -> None:
    with solo.busy():
        asked = time.time()
        job = submit(solo.http, task="embed_text", text=["first", "second"])
        assert job["state"] == "queued"
        assert job["items"] == {"total": 2, "done": 0, "failed": 0}
        assert (job["task"], job["model"], job["priority"]) == ("embed_text", "emoji-mini", "background")
        assert (job["started"], job["finished"], job["expires"], job["result"]) == (None, None, None, None)
        assert abs(moment(job["created"]) - asked) < 5
        assert job["queue"]["position"] == 0
        behind = submit(solo.http, task="embed_text", text="behind it")
        assert behind["queue"]["position"] == 1
        assert 0 <= job["queue"]["age_s"] <= look(solo.http, job["id"])["queue"]["age_s"] < 30
    done = ended(solo.http, job["id"])
    assert done["state"] == "succeeded"
    assert done["items"] == {"total": 2, "done": 2, "failed": 0}
    assert moment(done["created"]) <= moment(done["started"]) <= moment(done["finished"])
    assert moment(done["expires"]) - moment(done["finished"]) == pytest.approx(3600, abs=0.01)
    assert (done["queue"], done["error"], done["attempts"]) == (None, None, 1)
    assert done["timings"].keys() == {"queue", "prepare", "wait", "forward"}
    assert list(done["result"])[:4] == EMBED_KEYS


def test_both_doors_give_the_same_vectors(solo: Team) -> None:
    texts = ["a red heart", "pizza", ""]
    job = submit_texts(solo.http, *texts)
    same(succeeded(solo.http, job), vectors(embed_texts(solo.http, texts)), SAME)
    job = submit(solo.http, task="embed_image", image=IMAGES)["id"]
    same(succeeded(solo.http, job), vectors(embed_images(solo.http, PICTURES)), SAME)


@pytest.mark.parametrize("prompt", [["heart", "pizza"], {"h": "heart", "p": "pizza"}, "heart"])
def test_a_comparison_is_answered_in_the_shape_of_the_synchronous_route(solo: Team, prompt: Any) -> None:
    body = {"subject": IMAGES[0], "prompt": prompt}
    direct = ok(solo.http.post("/clip/compare", json=body))["similarity"]
    job = submit(solo.http, task="compare", **body)["id"]
    result = ended(solo.http, job)["result"]
    assert list(result) == COMPARE_KEYS
    if isinstance(prompt, dict):
        assert result["similarity"].keys() == direct.keys()
        direct, result["similarity"] = [*direct.values()], [*result["similarity"].values()]
    np.testing.assert_allclose(result["similarity"], direct, atol=SAME)


def test_a_waiting_poll_returns_as_soon_as_the_state_changes(solo: Team) -> None:
    with solo.busy():
        job = submit_texts(solo.http, "waited for")
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(look, solo.http, job, 50)
            second = pool.submit(look, solo.http, job, 50)
            changed = time.monotonic()
            assert solo.http.delete(f"/jobs/{job}").status_code == 200
            assert first.result()["state"] == second.result()["state"] == "cancelled"
        assert time.monotonic() - changed < 4, "woken, not found by the look that a waiter takes every five seconds"


def test_a_waiting_poll_of_a_job_that_has_ended_returns_at_once(solo: Team) -> None:
    job = submit_texts(solo.http, "ended before")
    succeeded(solo.http, job)
    asked = time.monotonic()
    assert look(solo.http, job, wait=30)["state"] == "succeeded"
    assert time.monotonic() - asked < 5


def test_a_wait_is_cut_to_the_setting(solo: Team, brief: httpx.Client) -> None:
    with solo.busy():
        job = submit_texts(brief, "not soon")
        asked = time.monotonic()
        assert look(brief, job, wait=1000)["state"] == "queued"
        assert 0.4 < time.monotonic() - asked < 5
        brief.delete(f"/jobs/{job}")


def test_a_job_may_hold_more_items_than_a_request(solo: Team) -> None:
    texts = [f"one of a thousand, {i}" for i in range(1000)]
    refused(embed_texts(solo.http, texts), 400)
    got = succeeded(solo.http, submit_texts(solo.http, *texts))
    same(got[-3:], vectors(embed_texts(solo.http, texts[-3:])), SAME)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"task": "embed_text", "text": ["x"] * 5}, 400, "at most 4"),
        ({"task": "embed_text", "text": []}, 400, "empty"),
        ({"task": "embed_text", "text": "x", "priority": "interactive"}, 400, "interactive_jobs"),
        ({"task": "embed_text", "text": "x", "clip_version_id": "no-such-model"}, 404, "not known"),
    ],
)
def test_what_cannot_be_done_is_refused_at_the_door(
    solo: Team, brief: httpx.Client, body: dict[str, Any], status: int, says: str
) -> None:
    assert says in refused(brief.post("/jobs", json=body), status)["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"text": "no task"},
        {"task": "embed_audio", "text": "x"},
        {"task": "embed_text"},
        {"task": "embed_text", "text": "x", "deadline_s": 0},
        {"task": "embed_text", "text": "x", "on_error": "ignore"},
    ],
)
def test_a_body_that_is_no_job_is_422(solo: Team, body: dict[str, Any]) -> None:
    response = solo.http.post("/jobs", json=body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][0] == "body"


def test_a_bad_url_is_refused_before_the_job_is_accepted_with_its_index(solo: Team) -> None:
    bad = {"type": "url", "value": "https://127.0.0.1/picture.png"}
    for body in ({"task": "embed_image", "image": [*IMAGES, bad]}, {"task": "embed_image", "image": [*IMAGES, BROKEN]}):
        response = solo.http.post("/jobs", json=body)
        if response.status_code == 202:  # only a decoder can say: the job tells
            document = ended(solo.http, response.json()["id"])
            assert (document["state"], document["error"]["index"]) == ("failed", 3)
        else:
            assert refused(response, 400)["index"] == 3
    assert solo.http.post("/jobs", json={"task": "embed_image", "image": [*IMAGES, bad]}).status_code == 400


def test_openapi_tells_the_three_jobs_apart_by_their_task(solo: Team) -> None:
    api = ok(solo.http.get("/openapi.json"))
    schema = api["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["discriminator"]["propertyName"] == "task"
    mapping = schema["discriminator"]["mapping"]
    assert mapping.keys() == {"embed_image", "embed_text", "compare"}
    assert {option["$ref"] for option in schema["oneOf"]} == set(mapping.values())
    for task, reference in mapping.items():
        found = api["components"]["schemas"][reference.rpartition("/")[2]]
        assert found["properties"]["task"]["const"] == task
    assert not [ref for ref in _references(api) if ref.rpartition("/")[2] not in api["components"]["schemas"]]


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


# Results


def test_a_result_comes_as_json_or_as_an_array(solo: Team) -> None:
    texts = ["one", "two", "three"]
    job = submit_texts(solo.http, *texts)
    expected = succeeded(solo.http, job)
    plain = solo.http.get(f"/jobs/{job}/result")
    assert list(ok(plain)) == EMBED_KEYS
    np.testing.assert_array_equal(np.array(plain.json()["embeddings"], np.float32), expected)
    packed = solo.http.get(f"/jobs/{job}/result", headers={"Accept": "application/x-npy"})
    assert packed.headers["content-type"] == "application/x-npy"
    assert packed.headers["x-clip-queue-fingerprint"] == plain.headers["x-clip-queue-fingerprint"]
    array = np.load(io.BytesIO(packed.content), allow_pickle=False)
    assert (array.dtype, array.shape) == (np.float32, (3, 128))
    np.testing.assert_array_equal(array, expected)


def test_one_bad_item_fails_the_job_and_is_named(solo: Team) -> None:
    job = submit(solo.http, task="embed_text", text=["good", "word " * 200, "good too"])["id"]
    document = ended(solo.http, job)
    assert document["state"] == "failed"
    assert (document["error"]["code"], document["error"]["index"]) == ("text_too_long", 1)
    assert "too long" in document["error"]["message"]
    assert document["result"] is None
    assert "too long" in refused(solo.http.get(f"/jobs/{job}/result"), 409)["message"]


def test_where_asked_bad_items_are_skipped_and_named_beside_the_good_ones(solo: Team) -> None:
    texts = ["good", "word " * 200, "good too"]
    job = submit_texts(solo.http, *texts, on_error="skip")
    document = ended(solo.http, job)
    assert document["state"] == "succeeded"
    assert document["items"] == {"total": 3, "done": 2, "failed": 1}
    result = document["result"]
    assert result["embeddings"][1] is None
    assert [(e["code"], e["index"]) for e in result["errors"]] == [("text_too_long", 1)]
    expected = vectors(embed_texts(solo.http, ["good", "good too"]))
    same(np.array([result["embeddings"][0], result["embeddings"][2]], np.float32), expected, SAME)
    packed = solo.http.get(f"/jobs/{job}/result", headers={"Accept": "application/x-npy"})
    array = np.load(io.BytesIO(packed.content), allow_pickle=False)
    assert np.isnan(array[1]).all()
    same(array[[0, 2]], expected, SAME)


def test_a_job_without_one_good_item_fails_although_it_skips(solo: Team) -> None:
    job = submit_texts(solo.http, "word " * 200, on_error="skip")
    document = ended(solo.http, job)
    assert (document["state"], document["error"]["index"]) == ("failed", 0)


def test_a_job_that_has_not_ended_has_no_result(solo: Team) -> None:
    with solo.busy() as running:
        assert "running" in refused(solo.http.get(f"/jobs/{running[0]}/result"), 409)["message"]


def test_a_result_is_kept_for_the_setting_and_then_the_job_is_unknown(solo: Team, brief: httpx.Client) -> None:
    job = submit_texts(brief, "soon gone")
    # Waited for in the store: a poll may come too late on a busy machine.
    client = solo.stack.valkey.client()
    wait_for(lambda: client.hget(f"cq:job:{job}", "state") in (b"succeeded", None), 30, "the job to end")
    response = brief.get(f"/jobs/{job}")
    if response.status_code == 200:
        document = response.json()
        assert moment(document["expires"]) - moment(document["finished"]) == pytest.approx(1.5, abs=0.01)
    wait_for(lambda: brief.get(f"/jobs/{job}").status_code == 404, 10, "the job to expire")
    assert brief.get(f"/jobs/{job}/result").status_code == 404
    assert client.keys(f"*{job}*") == []


# Events


Event = dict[str, str]


def events(http: httpx.Client, job: str, last: str = "", most: int = 10_000) -> Iterator[Event]:
    """A job's events, comments as events named ``:``."""
    headers = {"Last-Event-ID": last} if last else {}
    with http.stream("GET", f"/jobs/{job}/events", headers=headers) as response:
        if response.status_code == 204:
            return
        assert response.headers["content-type"].startswith("text/event-stream")
        event: Event = {}
        for line in response.iter_lines():
            if line:
                field, _, value = line.partition(":")
                event[field or ":"] = value.strip()
            elif event:
                yield event
                event = {}
                most -= 1
                if not most:
                    return


def test_events_tell_each_state_and_progress_and_end_with_the_job(solo: Team) -> None:
    solo.faults.delay(0.3)
    job = submit_texts(solo.http, *(f"told in events {i}" for i in range(80)))
    seen = [e for e in events(solo.http, job) if "data" in e]
    states = [e["id"].split("-")[0] for e in seen if e["event"] == "state"]
    assert states in (["queued", "running", "succeeded"], ["running", "succeeded"])
    assert any(e["event"] == "progress" for e in seen), "ten passes of 0.3 s, and progress every 0.75 s"
    assert len({e["id"] for e in seen}) == len(seen)
    assert '"result":null' in seen[-1]["data"]
    assert '"done":80' in seen[-1]["data"]
    # Nothing follows, and an EventSource that comes back is told not to again.
    assert list(events(solo.http, job, last=seen[-1]["id"])) == []
    assert solo.http.get(f"/jobs/{job}/events", headers={"Last-Event-ID": seen[-1]["id"]}).status_code == 204


def test_who_reconnects_with_the_last_event_misses_nothing_and_hears_nothing_twice(solo: Team) -> None:
    with solo.busy() as running:
        job = submit_texts(solo.http, "watched with an interruption")
        first = next(e for e in events(solo.http, job) if "data" in e)
        assert first["id"].startswith("queued")
        for blocker in running:
            solo.http.delete(f"/jobs/{blocker}")
        succeeded(solo.http, job)
        rest = [e for e in events(solo.http, job, last=first["id"]) if "data" in e]
        assert [e["id"].split("-")[0] for e in rest] == ["succeeded"]


def test_a_stream_beats_while_nothing_happens(solo: Team, brief: httpx.Client) -> None:
    with solo.busy():
        job = submit_texts(brief, "nothing happens to it")
        seen = list(events(brief, job, most=4))
        assert [next(iter(e)) for e in seen] == ["retry", "id", ":", ":"]
        brief.delete(f"/jobs/{job}")


# Cancelling


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
    assert ok(http.get("/jobs", params={"cursor": "nonsense"})) == {"jobs": [], "cursor": None}


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
    assert submit(another, header, **body)["id"] != first["id"], "a key is its owner's"
    assert solo.faults.computed("once only") <= 1


def test_repeats_at_the_same_time_become_one_job(solo: Team) -> None:
    header = {"Idempotency-Key": "all at once"}
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(post, solo.http, header, task="embed_text", text="at once") for _ in range(16)]
        got = [answer.result() for answer in answers]
    assert sorted(r.status_code for r in got) == [200] * 15 + [202]
    assert len({r.json()["id"] for r in got}) == 1
