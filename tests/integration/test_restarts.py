"""Workers that are restarted, orderly or not, while requests wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.harness import Api, stack, wait_for
from tests.images import noise_image
from tests.team import START, Team
from tests.wire import embed_images, embed_texts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

CLIENTS = 20


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Two workers. No request is late only because this machine starts a worker slowly."""
    with stack(tmp_path_factory.mktemp("restarts"), drain_timeout=2, request_timeout=START, restart_grace=START) as it:
        yield Team.start(it, 2)


@pytest.fixture
def pair(team: Team) -> Team:
    team.heal()
    return team


@pytest.fixture
def lone(team: Team) -> Team:
    """Only the first of them runs."""
    team.workers[1].stop()
    team.faults.clear()
    if not team.workers[0].alive:
        team.workers[0].start()
    team.stack.ready(team.workers[0], team.api, timeout=START)
    wait_for(lambda: team.stack.workers() == {team.workers[0].pid}, 30, "the second to be gone")
    return team


def patient(api: Api) -> httpx.Client:
    """A client that waits as long as a worker may take to start."""
    http = api.client()
    http.timeout = httpx.Timeout(START)
    return http


@contextmanager
def asked(team: Team, texts: list[str]) -> Iterator[list[Future[httpx.Response]]]:
    """Requests of one text each, which are all in the queue or at work inside."""
    with patient(team.api) as http, ThreadPoolExecutor(len(texts)) as callers:
        waiting = [callers.submit(embed_texts, http, [text]) for text in texts]
        redis = team.stack.valkey.client()
        wait_for(lambda: int(redis.hget("cq:load", "emoji-mini:interactive") or 0) >= len(texts), 30, "all accepted")
        yield waiting


def test_the_next_worker_answers_what_a_terminated_one_did_not(lone: Team) -> None:
    worker = lone.workers[0]
    lone.faults.delay(4)  # more than the worker has to drain
    with asked(lone, [f"text {i} before the restart" for i in range(8)]) as waiting:
        lone.at_work_on("text 0 before the restart")
        worker.stop()
        lone.faults.clear()
        time.sleep(5)  # the restart's own time
        worker.start()
        assert {answer.result().status_code for answer in waiting} == {200}


def test_the_next_worker_answers_what_a_killed_one_did_not(lone: Team) -> None:
    worker = lone.workers[0]
    lone.faults.delay(4)
    with asked(lone, [f"text {i} before the kill" for i in range(8)]) as waiting:
        lone.at_work_on("text 0 before the kill")
        worker.kill()
        lone.faults.clear()
        worker.start()  # within the lease of the one before
        assert {answer.result().status_code for answer in waiting} == {200}


def test_without_a_next_worker_requests_are_503_soon_and_cost_nobody_anything(lone: Team) -> None:
    api = lone.another_api(restart_grace=2)
    worker = lone.workers[0]
    lone.faults.delay(4)
    with patient(api) as http, ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(embed_texts, http, ["for nobody"])
        lone.at_work_on("for nobody")
        worker.kill()
        began = time.monotonic()
        answer = waiting.result()
        assert answer.status_code == 503
        assert answer.json()["message"].startswith("No live worker serves model 'emoji-mini'")
        assert int(answer.headers["retry-after"]) > 0
        assert time.monotonic() - began < 3 + 2 + 20, "lease and grace, and this machine's slowness"
        lone.faults.clear()
        # There is no sum of a model that has no unfinished jobs: it is zero.
        assert int(lone.stack.valkey.client().hget("cq:load", "emoji-mini:interactive") or 0) == 0
        worker.start()
        lone.stack.ready(worker, timeout=START)
        assert wait_for(lambda: embed_texts(http, ["for somebody"]).status_code == 200, 30)
    assert lone.faults.computed("for nobody") == 1, "it was at work when it was killed, and not taken up again"
    api.stop()


def test_a_request_is_answered_as_soon_as_a_worker_has_registered(lone: Team) -> None:
    worker, redis = lone.workers[0], lone.stack.valkey.client()
    api = lone.another_api(restart_grace=0)
    worker.stop()
    with patient(api) as http:
        wait_for(lambda: embed_texts(http, ["nobody there"]).status_code == 503, 30, "the worker's end to be seen")
        worker.start()
        wait_for(lambda: redis.exists("cq:loading:emoji-mini"), START, "the worker to say that it starts")
        wait_for(lambda: lone.stack.workers() == {worker.pid}, START, "the worker to register")
        assert embed_texts(http, ["at once"]).status_code == 200
        wait_for(lambda: not redis.exists("cq:loading:emoji-mini"), 10, "its lease to be enough")
    api.stop()


def test_what_is_asked_while_the_only_worker_is_restarted_waits_for_it(lone: Team) -> None:
    worker = lone.workers[0]
    lone.stack.ready(worker, timeout=START)
    with patient(lone.api) as http, ThreadPoolExecutor(4) as callers:
        assert embed_texts(http, ["before"]).status_code == 200
        worker.stop()
        wait_for(lambda: not lone.stack.workers(), 30, "the worker to be gone")
        wait_for(lambda: http.get("/readiness").status_code == 503, 30, "the API to see it")
        waiting = [callers.submit(embed_texts, http, [f"text {i} meanwhile"]) for i in range(4)]
        worker.start()
        assert {answer.result().status_code for answer in waiting} == {200}


def test_a_rolling_restart_under_load_fails_no_request(pair: Team, record_property: pytest.RecordProperty) -> None:
    over = threading.Event()
    counts: list[int] = []
    failures: list[str] = []

    def ask(number: int) -> None:
        asked = 0
        with patient(pair.api) as http:
            while not over.is_set():
                text = f"client {number}, request {asked}"
                image = asked % 4 == 3
                answer = embed_images(http, [noise_image(asked)]) if image else embed_texts(http, [text])
                asked += 1
                if answer.status_code != 200:
                    failures.append(f"{answer.status_code} {answer.text[:200]}")
        counts.append(asked)

    clients = [threading.Thread(target=ask, args=(i,)) for i in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        for worker in pair.workers:
            assert worker.stop() == 0
            worker.start()
            pair.stack.ready(worker, timeout=START)
    finally:
        over.set()
        for client in clients:
            client.join(START)
    record_property("requests", sum(counts))
    assert failures == []
    assert sum(counts) > 10 * CLIENTS
