"""The job door: waiting for a job, its result, its events."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.harness import wait_for
from tests.jobs_api import ended, look, moment, submit, submit_texts, succeeded
from tests.team import Team
from tests.wire import EMBED_KEYS, embed_texts, ok, refused, same, vectors

pytestmark = pytest.mark.timeout(400)

SAME = 1e-6  # of a vector's length


# Polling


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
