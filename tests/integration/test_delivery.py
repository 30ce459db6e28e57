"""What is accepted is done, exactly, whatever is killed in between."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clip_queue.shared import submissions
from clip_queue.shared.broker import celery_app
from clip_queue.shared.job import Inputs, Job, Kind
from clip_queue.shared.lane import Lane
from clip_queue.shared.messages import TASK, queue_name
from clip_queue.shared.runs import led
from clip_queue.worker.heartbeat import END
from clip_queue.worker.inference.clip_model import ClipModel
from tests.harness import stack, wait_for
from tests.images import base64_image, noise_image
from tests.jobs_api import ended, look, submit, submit_texts, succeeded
from tests.team import START, Team
from tests.wire import embed_texts, same, vectors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LANES = (Lane.INTERACTIVE, Lane.BACKGROUND)  # of requests and jobs; shards have their own tests


@pytest.fixture(scope="module")
def pair_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with stack(tmp_path_factory.mktemp("pair"), drain_timeout=2) as it:
        yield Team.start(it, 2)


@pytest.fixture
def pair(pair_stack: Team) -> Team:
    """Two workers."""
    pair_stack.heal()
    return pair_stack


def expect(clip: ClipModel, *texts: str) -> np.ndarray:
    return clip.embed_texts([clip.tokenizer(t) for t in texts]).result()


def test_killed_in_mid_batch_a_worker_costs_nobody_an_answer(
    tmp_path: Path, clip: ClipModel, record_property: pytest.RecordProperty
) -> None:
    with stack(tmp_path, lease=8) as it, ThreadPoolExecutor(1) as background:
        team = Team.start(it, 2)
        team.faults.delay(3)
        waiting = background.submit(embed_texts, team.http, ["asked and waited for"])
        worker = team.at_work_on("asked and waited for")
        job = submit_texts(team.http, "one of a job", "two of a job")
        other = submit_texts(team.http, "another job")
        worker.kill()
        killed = time.monotonic()
        # Celery's own second net is taken away: the lease and the reconciler do it.
        team.stack.valkey.client().delete("unacked", "unacked_index")
        team.faults.clear()
        got = vectors(waiting.result())
        record_property("redelivery_s", round(time.monotonic() - killed, 2))
        assert time.monotonic() - killed < 15
        same(got, expect(clip, "asked and waited for"))
        same(succeeded(team.http, job), expect(clip, "one of a job", "two of a job"))
        same(succeeded(team.http, other), expect(clip, "another job"))
        assert time.monotonic() - killed < 15
        assert team.faults.computed("asked and waited for") == 2


def test_a_caller_whose_worker_is_gone_for_good_is_told_what_became_of_the_job(solo: Team) -> None:
    api = solo.another_api(request_timeout=2)
    solo.faults.delay(5)
    with api.client() as http:
        answer = embed_texts(http, ["too slow for its caller"])
        assert answer.status_code == 504
        job_id = answer.json()["message"].split("job ")[1].split()[0]
        assert answer.json()["message"].endswith("was running.")
        assert ended(http, job_id)["state"] == "expired"
    api.stop()


def test_terminated_a_worker_finishes_what_it_can_and_gives_the_rest_back(pair: Team, clip: ClipModel) -> None:
    pair.faults.delay(0.5)
    texts = [f"item {i} of a long job" for i in range(400)]
    short = submit_texts(pair.http, "a short job")
    worker = pair.at_work_on("a short job")
    long = submit_texts(pair.http, *texts)
    wait_for(lambda: look(pair.http, long)["state"] == "running", 30, "the long job to be running")
    holder = pair.at_work_on(texts[0])
    assert holder.stop(timeout=30) == 0
    taken_up = look(pair.http, long)
    assert taken_up["state"] in ("queued", "running"), "50 passes of half a second do not fit into a drain of two"
    pair.faults.clear()
    same(succeeded(pair.http, long), expect(clip, *texts))
    assert ended(pair.http, long)["attempts"] == 1, "a job given back has not lost a worker"
    assert ended(pair.http, short)["state"] == "succeeded"
    if worker is holder:
        assert ended(pair.http, short)["attempts"] == 1


def test_terminated_with_an_image_that_hangs_a_worker_gives_it_back_and_ends_by_itself(tmp_path: Path) -> None:
    with stack(tmp_path, drain_timeout=1) as it:
        team = Team.start(it, 1)
        team.faults.hang_images()
        job = submit(team.http, task="embed_image", image=base64_image(noise_image()))["id"]
        wait_for(lambda: look(team.http, job)["state"] == "running", 30, "the image to be decoded")
        worker = team.workers[0]
        worker.signal(signal.SIGTERM)
        wait_for(lambda: look(team.http, job)["state"] == "queued", 30, "the job to be given back")
        assert worker.alive, "Celery waits for the thread"
        assert worker.process is not None
        assert worker.process.wait(END + 30) == 70
        team.heal()
        assert ended(team.http, job, START)["state"] == "succeeded"
        assert look(team.http, job)["attempts"] == 1, "a job given back has not lost a worker"


def test_a_store_that_forgot_that_a_job_has_ended_has_it_done_again(tmp_path: Path, clip: ClipModel) -> None:
    """As after a power cut with a file synced every second, or a replica that took over a moment behind."""
    with stack(tmp_path, lease=2) as it:
        team = Team.start(it, 1)
        team.faults.delay(2)
        job = submit_texts(team.http, "done, and forgotten")
        team.at_work_on("done, and forgotten")
        client = team.stack.valkey.client()
        keys = [f"cq:job:{job}", f"cq:in:{job}", "cq:open:emoji-mini", "cq:load"]
        before = {key: client.dump(key) for key in keys}
        team.faults.clear()
        succeeded(team.http, job)
        client.delete(f"cq:out:{job}")
        for key, value in before.items():
            client.restore(key, 0, value, replace=True)
        assert look(team.http, job)["state"] == "running"
        same(succeeded(team.http, job), expect(clip, "done, and forgotten"))
        assert ended(team.http, job)["attempts"] == 2


def test_a_store_that_was_away_for_twenty_seconds_has_lost_nothing(pair: Team, clip: ClipModel) -> None:
    everyone = [pair.api, *pair.workers]
    pids = [service.pid for service in everyone]
    pair.faults.delay(1)
    names = [f"job {i} of the outage" for i in range(30)]
    jobs = {submit_texts(pair.http, name): name for name in names}
    pair.at_work_on(names[0])
    pair.stack.valkey.stop()
    began = time.monotonic()
    while (away := time.monotonic() - began) < 20:
        asked = time.monotonic()
        assert embed_texts(pair.http, ["while the store is away"]).status_code == 503
        assert pair.http.post("/jobs", json={"task": "embed_text", "text": "x"}).status_code == 503
        assert time.monotonic() - asked < 4, "two answers, each within two seconds"
        time.sleep(min(1.0, 20 - away))  # the outage itself
    pair.stack.valkey.start()
    pair.faults.clear()
    for job, name in jobs.items():
        same(succeeded(pair.http, job), expect(clip, name))
    # The API sees the workers again within a beat or two of theirs.
    answer = wait_for(lambda: (r := embed_texts(pair.http, ["after the outage"])).status_code == 200 and r, 5)
    got = vectors(answer)
    same(got, expect(clip, "after the outage"))
    assert [service.pid for service in everyone if service.alive] == pids, "nobody needed a restart"


def test_a_store_that_hangs_is_a_503_within_two_seconds(pair: Team) -> None:
    pair.stack.valkey.signal(signal.SIGSTOP)
    try:
        for door in ("/clip/embed_text", "/jobs"):
            asked = time.monotonic()
            answer = pair.http.post(door, json={"task": "embed_text", "text": "x"})
            assert (answer.status_code, time.monotonic() - asked < 2) == (503, True)
            assert int(answer.headers["retry-after"]) >= 1
    finally:
        pair.stack.valkey.signal(signal.SIGCONT)
    wait_for(lambda: embed_texts(pair.http, ["x"]).status_code == 200, 30, "service to be back")


def test_jobs_outlive_the_api_that_took_them(pair: Team, clip: ClipModel) -> None:
    other = pair.another_api()
    pair.faults.delay(1)
    with other.client() as http:
        job = submit_texts(http, "from an API that is killed")
    other.kill()
    got = succeeded(pair.http, job)
    same(got, expect(clip, "from an API that is killed"))


def test_a_job_that_takes_three_workers_down_is_failed_and_its_neighbours_are_not(pair: Team, clip: ClipModel) -> None:
    pair.faults.poison("poison")
    neighbours = [submit_texts(pair.http, f"neighbour {i} before") for i in range(5)]
    poison = submit_texts(pair.http, "poison")
    neighbours += [submit_texts(pair.http, f"neighbour {i} after") for i in range(5)]

    def over() -> bool:
        pair.tend()
        return look(pair.http, poison)["state"] == "failed"

    wait_for(over, 180, "the job to be given up")
    document = look(pair.http, poison)
    assert document["attempts"] == 3
    assert document["error"]["code"] == "worker_lost"
    assert "not tried again" in document["error"]["message"]
    pair.heal()
    for i, job in enumerate(neighbours):
        name = f"neighbour {i % 5} {'before' if i < 5 else 'after'}"
        same(succeeded(pair.http, job), expect(clip, name))
    assert pair.faults.computed("poison") == 3


def the_worker_ends_and_the_next_one_finishes(solo: Team, job: str, expected: np.ndarray) -> None:
    worker = solo.workers[0]
    assert worker.process is not None
    assert worker.process.wait(20) == 70
    worker.start()
    same(succeeded(solo.http, job, START), expected)
    assert ended(solo.http, job)["attempts"] == 2
    wait_for(solo.api.ready, 60, "readiness to be back")


@pytest.mark.parametrize(("fault", "lane"), [("hang", LANES[0]), ("die", LANES[0]), ("die", LANES[1])])
def test_an_engine_that_hangs_or_dies_is_not_ready_and_ends_and_its_jobs_finish(
    solo: Team, clip: ClipModel, fault: str, lane: Lane
) -> None:
    assert solo.api.ready()
    (solo.faults.hang if fault == "hang" else solo.faults.die)()
    text = f"a job of the {lane} lane to {fault} on"
    job = submit_texts(solo.http, text, priority=lane)
    solo.at_work_on(text)
    broken = time.monotonic()
    wait_for(lambda: not solo.api.ready(), 10, "readiness to tell")
    assert time.monotonic() - broken < 10
    the_worker_ends_and_the_next_one_finishes(solo, job, expect(clip, text))


def test_while_background_work_hangs_requests_are_answered_until_the_worker_ends(solo: Team, clip: ClipModel) -> None:
    text = "a background job to hang on"
    solo.faults.hang()
    job = submit_texts(solo.http, text)
    solo.at_work_on(text)
    same(vectors(embed_texts(solo.http, ["asked meanwhile"])), expect(clip, "asked meanwhile"))
    assert solo.http.get(f"/jobs/{job}").json()["state"] == "running"
    the_worker_ends_and_the_next_one_finishes(solo, job, expect(clip, text))


@pytest.mark.parametrize("lane", LANES)
def test_a_message_delivered_twice_computes_stores_and_wakes_once(solo: Team, lane: Lane) -> None:
    store, reply, text = solo.store(), f"cq:reply:test-{lane}", f"twice in the {lane} lane"
    celery = celery_app(solo.settings())
    job = Job(Kind.EMBED_TEXT, "emoji-mini", 1, lane, owner="open", reply=reply, ttl=60_000)

    def deliver() -> None:
        celery.send_task(TASK, ("emoji-mini", lane, [job.id]), queue=queue_name("emoji-mini", lane), retry=False)

    solo.faults.delay(1)
    store.execute(submissions.accept([submissions.Submission(job, Inputs([text]), 4096)]))
    deliver()
    deliver()
    solo.at_work_on(text)
    deliver()
    first = ended(solo.http, job.id)
    solo.faults.clear()
    deliver()
    # A message behind those in the same lane has been worked on: so have they.
    after = f"after twice in the {lane} lane"
    succeeded(solo.http, submit_texts(solo.http, after, priority=lane))
    assert solo.faults.computed(text) == 1
    assert store.client.llen(reply) == 1
    assert ended(solo.http, job.id) == first
    store.client.delete(reply)
    store.close()


def test_with_every_message_deleted_the_jobs_are_sent_again(solo: Team, clip: ClipModel) -> None:
    client, worker = solo.stack.valkey.client(), solo.workers[0]
    queues = [queue_name("emoji-mini", lane) for lane in LANES]
    lost: dict[str, str] = {}
    # A worker that stands still for a moment receives one message at most, the one its open read takes.
    worker.signal(signal.SIGSTOP)
    first = submit_texts(solo.http, "received", priority="interactive")
    for lane in LANES:
        for i in range(3):
            text = f"lost {i} in the {lane} lane"
            lost[submit_texts(solo.http, text, priority=lane)] = text
    assert client.delete(*queues) == 2
    worker.signal(signal.SIGCONT)
    for job, text in {**lost, first: "received"}.items():
        same(succeeded(solo.http, job), expect(clip, text))


def test_a_worker_waits_at_one_list_a_queue_and_at_interactive_ones_first(solo: Team) -> None:
    def waits() -> list[str]:
        with solo.stack.valkey.client().monitor() as monitor:  # a worker asks again each second
            until = time.monotonic() + 10
            while time.monotonic() < until:
                words = monitor.next_command()["command"].split()
                if words[0] == "BRPOP":
                    return words[1:-1]
        return []

    names = [*(queue_name("emoji-mini", lane) for lane in Lane), queue_name(led("emoji-mini"), Lane.BULK)]
    assert waits() == names
