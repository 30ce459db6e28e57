"""Health that tells the truth, and refusals in time: a worker that stops, a full queue, a Redis that is away."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import numpy as np
import pytest

from tests.checkpoints import tiny_checkpoint
from tests.harness import Api, Service, Stack, stack, wait_for
from tests.images import noise_image
from tests.reference import Reference
from tests.team import Team
from tests.wire import embed_images, embed_texts, ok, refused, same, vectors

pytestmark = pytest.mark.timeout(240)  # the first test waits for two processes that import torch

TIMEOUT = 2.0  # seconds, the API's deadline for a request
FULL = 4  # items that may wait
LEASE = 6.0  # seconds; more than the deadline, so that a stopped worker counts as alive for the while of a test


@dataclass
class Breakable:
    stack: Stack
    worker: Service
    api: Api
    checkpoint: str

    @contextmanager
    def stopped(self, service: Service) -> Iterator[None]:
        """Inside, the service hangs; afterwards all is as it was."""
        service.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            service.signal(signal.SIGCONT)
            self.stack.ready(self.worker, self.api)

    def readiness(self) -> tuple[int, str]:
        with self.api.client() as http:
            response = http.get("/readiness")
            return response.status_code, response.json().get("message", "")


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Breakable]:
    """A stack with two models, one of them a checkpoint of the user's own, and little patience."""
    folder = tmp_path_factory.mktemp("breakable")
    tiny = tiny_checkpoint(folder / "tiny-clip")
    settings = {
        "models": f"emoji-mini,tiny=local-dir:{tiny}",
        "lease": LEASE,
        "request_timeout": TIMEOUT,
        "max_queued_items": FULL,
    }
    with stack(folder, **settings) as it:
        worker, api = it.worker(), it.api()
        it.ready(worker, api, timeout=180)
        yield Breakable(it, worker, api, f"local-dir:{tiny}")


@pytest.fixture
def http(breakable: Breakable) -> Iterator[httpx.Client]:
    with breakable.api.client() as client:
        yield client


def test_a_checkpoint_in_a_local_folder_is_served_under_its_own_name(breakable: Breakable, http: httpx.Client) -> None:
    reference = Reference(breakable.checkpoint)
    answer = embed_images(http, [noise_image(), noise_image(1)], clip_version_id="tiny")
    same(vectors(answer), reference.images([noise_image(), noise_image(1)]))
    assert answer.headers["x-clip-queue-model"] == "tiny"
    assert "x-clip-queue-notice" not in answer.headers
    same(vectors(embed_texts(http, ["a cat"], clip_version_id="tiny")), reference.texts(["a cat"]))
    assert vectors(embed_texts(http, ["a cat"])).shape == (1, 128), "the first model is the default one"
    models = {m["name"]: m for m in ok(http.get("/model/registry"))["models"]}
    assert models.keys() == {"emoji-mini", "tiny"}
    assert models["tiny"]["source"] == "local-dir:tiny-clip", "the path itself is nobody's business"
    assert models["tiny"]["fingerprint"] == answer.headers["x-clip-queue-fingerprint"]
    assert models["tiny"]["dimension"] == 32


def test_a_result_that_is_late_is_504_and_never_202(breakable: Breakable, http: httpx.Client) -> None:
    with breakable.stopped(breakable.worker):
        began = time.monotonic()
        message = refused(embed_texts(http, ["late"]), 504)["message"]
        assert TIMEOUT <= time.monotonic() - began < TIMEOUT + 2
        assert message.startswith("No result within 2 s; job ")
    assert vectors(embed_texts(http, ["in time again"])).shape == (1, 128)


def test_a_full_queue_is_429_and_says_when_to_retry(breakable: Breakable, http: httpx.Client) -> None:
    with breakable.stopped(breakable.worker):
        waits = threading.Thread(target=embed_texts, args=(breakable.api.client(), ["waits"] * FULL))
        waits.start()
        redis = breakable.stack.valkey.client()
        wait_for(lambda: int(redis.hget("cq:load", "emoji-mini:interactive") or 0) >= FULL, 5, "four items wait")
        response = embed_texts(http, ["one too many"])
        message = refused(response, 429)["message"]
        assert message == "4 items of 'emoji-mini' are waiting (limit 4); try again later."
        assert 1 <= int(response.headers["retry-after"]) <= 60
        waits.join(10)
    assert vectors(embed_texts(http, ["room again"])).shape == (1, 128)


def test_readiness_fails_with_a_worker_that_hangs_and_comes_back_with_it(
    breakable: Breakable, http: httpx.Client
) -> None:
    assert breakable.readiness() == (200, "")
    with breakable.stopped(breakable.worker):
        wait_for(lambda: breakable.readiness()[0] == 503, 10, "a worker that hangs is not ready")
        response = http.get("/readiness")
        assert response.json().keys() == {"status", "message"}
        assert int(response.headers["retry-after"]) > 0
        assert ok(http.get("/healthz")) == {"status": "healthy"}, "the API itself is well"
        # Once its lease is over, the worker is gone, and after `restart_grace` requests are refused and not late.
        wait_for(lambda: "No live worker serves" in breakable.readiness()[1], 15, "the lease runs out")

        def refused_at_once() -> bool:
            began = time.monotonic()
            response = embed_texts(http, ["a cat"])
            assert "No live worker serves model 'emoji-mini'" in refused(response, 503)["message"]
            assert int(response.headers["retry-after"]) > 0
            return time.monotonic() - began < 1

        wait_for(refused_at_once, 15, "requests to be refused at once")
    assert breakable.readiness() == (200, "")


def test_readiness_fails_while_images_hang_though_texts_flow(solo: Team) -> None:
    flow = threading.Event()
    answers: list[int] = []

    def texts() -> None:
        with solo.api.client() as http:
            while not flow.wait(0.05):
                answers.append(embed_texts(http, [f"text {len(answers)}"]).status_code)

    def readiness() -> tuple[int, str]:
        response = solo.http.get("/readiness")
        return response.status_code, response.json().get("message", "")

    thread = threading.Thread(target=texts)
    thread.start()
    try:
        wait_for(lambda: readiness()[0] == 200, 30, "a healthy beginning")
        solo.faults.hang_images()
        began = len(answers)
        wait_for(lambda: readiness()[0] == 503, 15, "images that hang to be told")
        for _ in range(2):
            status, message = readiness()
            assert (status, "does not compute images" in message, "texts" in message) == (503, True, False), message
        assert len(answers) > began + 10
        solo.faults.clear()
        wait_for(lambda: readiness()[0] == 200, 30, "readiness to be back")
    finally:
        flow.set()
        thread.join(60)
    assert set(answers) == {200}


def test_images_that_hang_hold_up_no_texts_once_their_callers_are_gone(solo: Team) -> None:
    """Each comes in a message of its own, and waits in one of the worker's 16 threads until its deadline has passed. No
    more of them are decoded than there are threads for it."""
    api = solo.another_api(request_timeout=2)
    solo.faults.hang_images()
    with api.client() as http, ThreadPoolExecutor(24) as callers:
        answers = []
        for number in range(24):
            answers.append(callers.submit(embed_images, http, [noise_image(number)]))
            time.sleep(0.05)
        assert {answer.result().status_code for answer in answers} == {504}
        wait_for(lambda: embed_texts(http, ["a text after them"]).status_code == 200, 20, "texts to flow again")
    api.stop()


def test_with_redis_down_requests_are_503_within_two_seconds_and_it_comes_back_by_itself(
    breakable: Breakable, http: httpx.Client
) -> None:
    pids = {breakable.worker.pid, breakable.api.pid}
    before = vectors(embed_texts(http, ["a cat"]))
    breakable.stack.valkey.kill()
    try:
        for _ in range(3):
            began = time.monotonic()
            response = embed_texts(http, ["a cat"])
            refused(response, 503)
            assert int(response.headers["retry-after"]) > 0
            assert time.monotonic() - began < 2
        wait_for(lambda: breakable.readiness()[0] == 503, 10, "not ready without Redis")
        assert ok(http.get("/healthz")) == {"status": "healthy"}
    finally:
        breakable.stack.valkey.start()
    breakable.stack.ready(breakable.worker, breakable.api)
    np.testing.assert_allclose(vectors(embed_texts(http, ["a cat"])), before, rtol=1e-5)
    assert {breakable.worker.pid, breakable.api.pid} == pids
    assert breakable.worker.alive
    assert breakable.api.alive


def test_with_a_redis_that_hangs_requests_are_503_within_two_seconds(breakable: Breakable, http: httpx.Client) -> None:
    with breakable.stopped(breakable.stack.valkey):
        began = time.monotonic()
        refused(embed_texts(http, ["a cat"]), 503)
        assert time.monotonic() - began < 2
    assert vectors(embed_texts(http, ["a cat"])).shape == (1, 128)


def test_an_api_started_before_any_worker_is_healthy_but_not_ready(breakable: Breakable) -> None:
    """And it learns of models from workers, not from its own settings."""
    api = breakable.stack.api(models="ViT-B-32")
    wait_for(api.answers, 90, "the API is there")
    with api.client() as http:
        response = http.get("/readiness")
        assert response.status_code == 503
        assert "No live worker serves model 'ViT-B-32'" in response.json()["message"]
        assert wait_for(lambda: embed_texts(http, ["a cat"], clip_version_id="tiny").is_success, 10, "a served model")
    api.stop()
