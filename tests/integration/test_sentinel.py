"""Sentinel: the master is killed under load, a replica takes over, and what was accepted is done."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import httpx
import pytest
import redis as redis_py

from clip_queue.worker.inference.clip_model import ClipModel
from tests.harness import Api, stack, wait_for
from tests.jobs_api import succeeded
from tests.redis_servers import Guarded, RedisServer, guarded, needs_redis
from tests.wire import embed_texts, same, vectors

pytestmark = [needs_redis, pytest.mark.slow, pytest.mark.timeout(600)]


class Load:
    """A client that submits jobs, and one that asks and waits, until told to stop."""

    def __init__(self, api: Api) -> None:
        self.accepted: dict[str, str] = {}
        self.answered: list[tuple[float, int]] = []
        self._api, self._stop = api, threading.Event()
        self._threads = [threading.Thread(target=each, name=each.__name__) for each in (self._submit, self._ask)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _submit(self) -> None:
        with self._api.client() as http:
            for number in range(100_000):
                text = f"job {number} of the failover"
                answer = http.post("/jobs", json={"task": "embed_text", "text": text})
                if answer.status_code == 202:
                    self.accepted[answer.json()["id"]] = text
                else:
                    assert answer.status_code == 503, answer.text
                if self._stop.wait(0.02):
                    return

    def _ask(self) -> None:
        with self._api.client() as http:
            while not self._stop.wait(0.02):
                self.answered.append((time.monotonic(), embed_texts(http, ["asked in the failover"]).status_code))


def expect(clip: ClipModel, text: str) -> object:
    return clip.embed_texts([clip.tokenizer(text)]).result()


def test_a_master_killed_under_load_costs_no_accepted_job(
    tmp_path: Path, clip: ClipModel, record_property: pytest.RecordProperty
) -> None:
    with guarded(tmp_path) as redis, stack(tmp_path, redis_url=redis.url, lease=5, redis_replicas=1) as it:
        worker, api = it.worker(), it.api()
        it.ready(worker, api, timeout=180)
        with Load(api) as load:
            wait_for(lambda: len(load.accepted) >= 30, 60, "jobs")
            first = redis.master()
            first.kill()
            killed = time.monotonic()
            wait_for(lambda: redis.master() is not first, 60, "a new master")
            promoted = time.monotonic()
            before = len(load.accepted)
            wait_for(lambda: len(load.accepted) >= before + 30, 60, "jobs after the failover")
            wait_for(lambda: any(at > promoted and code == 200 for at, code in load.answered), 60, "an answer")
            answered = next(at for at, code in load.answered if at > promoted and code == 200)
        record_property("outage_s", round(answered - killed, 2))
        assert {code for _, code in load.answered} <= {200, 503, 504}
        with api.client() as http:
            for job_id, text in load.accepted.items():
                same(succeeded(http, job_id), expect(clip, text))
        # The one that was killed comes back as a replica, and a second failover, by hand, works the same.
        first.start()
        second = redis.master()
        wait_for(lambda: redis.replicas(second) == 2, 60, "two replicas again")
        # While it is under way two masters are written to; only what all replicas have is sure to be at the new one.
        api = it.api(redis_replicas=2)
        it.ready(api)
        with Load(api) as load:
            wait_for(lambda: len(load.accepted) >= 10, 60, "jobs")
            wait_for(lambda: _failed_over(redis, second), 90, "a failover by hand")
            before = len(load.accepted)
            wait_for(lambda: len(load.accepted) >= before + 10, 60, "jobs after it")
        with api.client() as http:
            for job_id, text in load.accepted.items():
                same(succeeded(http, job_id), expect(clip, text))
            # The lease that the worker renewed at the old master to the end may be over at the new one for a moment.
            wait_for(lambda: _answered(http).status_code == 200, 30, "an answer")
            same(vectors(_answered(http)), expect(clip, "after two failovers"))
        assert worker.alive
        assert api.alive


def _failed_over(redis: Guarded, before: RedisServer) -> bool:
    """Ask for a failover as often as it takes: a Sentinel may refuse it for a while after another one."""
    if redis.master() is before:
        with contextlib.suppress(redis_py.RedisError), redis.client(redis.sentinels[0]) as client:
            client.execute_command("SENTINEL", "FAILOVER", redis.NAME)
        time.sleep(0.5)
    return redis.master() is not before


def _answered(http: httpx.Client) -> httpx.Response:
    return embed_texts(http, ["after two failovers"])
