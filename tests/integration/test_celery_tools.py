"""Celery's own tools: what ``celery inspect`` and an event receiver see of a real worker, and what it refuses them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery

from clip_queue.shared.broker import celery_app
from clip_queue.shared.messages import TASK
from clip_queue.shared.settings import Settings
from clip_queue.shared.transport import REPLIES, REPLY_TTL
from tests.harness import ROOT, Api, Service, Stack, wait_for
from tests.jobs_api import submit_texts, succeeded
from tests.team import START
from tests.wire import embed_texts, vectors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

KEY = "celery-tools-key-81"
WORD = "wombat"


@pytest.fixture
def watched(own_stack: Stack) -> tuple[Stack, Service, Api]:
    """A worker that may be looked at, and an API that asks for a key."""
    worker, api = own_stack.worker(celery_tools=True), own_stack.api(api_keys=KEY)
    own_stack.ready(worker, api, timeout=START)
    return own_stack, worker, api


def tools(stack: Stack) -> Celery:
    return celery_app(Settings(redis_url=stack.redis_url))  # type: ignore[arg-type]


PROBE = "test-probe"


@contextmanager
def listening(stack: Stack) -> Iterator[list[dict[str, Any]]]:
    """The events that arrive, as Celery's own receiver takes them, from a moment on when one of our own has."""
    events: list[dict[str, Any]] = []
    ready = threading.Event()

    def take(event: dict[str, Any]) -> None:
        if event["type"] == PROBE:
            ready.set()
        else:
            events.append(event)

    def heard() -> bool:
        with tools(stack).events.default_dispatcher() as dispatcher:
            dispatcher.send(PROBE)
        return ready.wait(0.2)

    with tools(stack).connection_for_read() as connection:
        receiver = tools(stack).events.Receiver(connection, handlers={"*": take})
        thread = threading.Thread(target=lambda: receiver.capture(timeout=None))
        thread.start()
        try:
            wait_for(heard, 60, "a receiver")  # that somebody has subscribed is also true of the worker
            yield events
        finally:
            receiver.should_stop = True
            thread.join(20)


def kinds(events: list[dict[str, Any]]) -> set[str]:
    return {event["type"] for event in events}


def inspect(stack: Stack, command: str) -> Any:
    """What the worker answers, by a client of the library."""
    answers = getattr(tools(stack).control.inspect(timeout=10, limit=1), command)()
    return next(iter(answers.values())) if answers else None


def left(client: redis.Redis) -> set[str]:
    """The keys of events and remote control."""
    return {key.decode() for key in client.scan_iter("*") if b"pidbox" in key or b"celeryev" in key}


def test_celery_inspect_answers_and_events_carry_no_text_and_no_key(watched: tuple[Stack, Service, Api]) -> None:
    stack, worker, api = watched
    command = [sys.executable, "-m", "celery", "-A", "clip_queue.worker.app", "inspect", "ping", "--timeout", "10"]
    env = {**worker.env, **stack.env()}
    said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert (said.returncode, "pong" in said.stdout) == (0, True), said.stdout + said.stderr

    with listening(stack) as events, api.client(params={"api_key": KEY}) as http:
        vectors(embed_texts(http, [WORD]))
        succeeded(http, submit_texts(http, f"{WORD} {WORD}"))
        wait_for(lambda: {"task-received", "task-started", "task-succeeded", "worker-heartbeat"} <= kinds(events), 30)
        seen = {command: inspect(stack, command) for command in ("stats", "registered", "active", "active_queues")}
        seen["conf"] = inspect(stack, "conf")
    received = next(event for event in events if event["type"] == "task-received")
    assert received["name"] == TASK
    assert received["args"].startswith("('emoji-mini', '"), received
    assert (seen["registered"], seen["active"]) == ([TASK], [])
    assert next(queue["name"] for queue in seen["active_queues"]).startswith("clip.emoji-mini.")
    assert seen["stats"]["total"][TASK] >= 2
    told = json.dumps([events, seen], default=str)
    assert WORD not in told
    assert KEY not in told


def test_what_would_change_a_worker_is_refused_and_nothing_is_lost(watched: tuple[Stack, Service, Api]) -> None:
    stack, worker, api = watched
    control = tools(stack).control
    with listening(stack) as events, api.client(params={"api_key": KEY}) as http:
        jobs = [submit_texts(http, *(f"{number} {i}" for i in range(100))) for number in range(20)]
        wait_for(lambda: "task-received" in kinds(events), 30)
        messages = list({event["uuid"] for event in events if event["type"] == "task-received"})
        orders: list[tuple[str, dict[str, Any]]] = [
            ("revoke", {"task_id": messages, "terminate": True, "signal": "SIGKILL"}),
            ("rate_limit", {"task_name": TASK, "rate_limit": "1/h"}),
            ("cancel_consumer", {"queue": "clip.emoji-mini.interactive"}),
            ("pool_shrink", {"n": 16}),
            ("objgraph", {}),
            ("hello", {"from_node": "x", "revoked": {}}),
            ("shutdown", {}),
        ]
        for name, arguments in orders:
            (answer,) = control.broadcast(name, arguments=arguments, reply=True, timeout=10, limit=1)
            assert "only looked at" in next(iter(answer.values()))["error"], name
        for job in jobs:
            assert succeeded(http, job).shape == (100, 128)
        vectors(embed_texts(http, ["and requests"]))
    assert worker.alive
    assert "task-revoked" not in kinds(events)
    assert "Traceback" not in worker.log.read_text()


def test_an_answer_that_nobody_fetches_is_forgotten_and_an_ended_worker_leaves_nothing(
    watched: tuple[Stack, Service, Api],
) -> None:
    stack, worker, _ = watched
    client, app = stack.valkey.client(), tools(stack)
    with app.connection_for_write() as connection:
        asked = app.control.mailbox(connection)
        asked._publish("ping", {}, reply_ticket=str(uuid4()), channel=connection.default_channel)
        (answer,) = wait_for(lambda: list(client.scan_iter(f"*-*{REPLIES}")), 20, "an answer")
        assert 0 < client.pttl(answer) <= 1000 * REPLY_TTL
    client.delete(answer)
    assert inspect(stack, "ping") == {"ok": "pong"}
    assert "_kombu.binding.celery.pidbox" in left(client)
    worker.stop()
    assert left(client) <= {"_kombu.binding.reply.celery.pidbox"}, "that of who has asked and not fetched"
    assert {name.decode() for name in client.zrange("_kombu.binding_deadlines", 0, -1)} <= {
        "celery.pidbox",
        "celeryev",
        "reply.celery.pidbox",
    }


def test_when_redis_is_killed_and_comes_back_so_do_events_and_answers(watched: tuple[Stack, Service, Api]) -> None:
    stack, worker, api = watched
    with api.client(params={"api_key": KEY}) as http:
        jobs = [submit_texts(http, f"before {number}") for number in range(5)]
        wait_for(lambda: succeeded(http, jobs[-1]) is not None, 60)
        stack.valkey.client().config_set("appendfsync", "always")
        jobs += [submit_texts(http, *(f"{number} {i}" for i in range(200))) for number in range(10)]
        stack.valkey.kill()
        stack.valkey.start()
        stack.ready(api, timeout=START)

        def done(job: str) -> bool:
            answer = http.get(f"/jobs/{job}")  # 503 as often as a connection is left that knows nothing of it
            return answer.status_code == 200 and answer.json()["state"] == "succeeded"

        for job in jobs:
            wait_for(lambda job=job: done(job), 90, job)  # type: ignore[misc]
        wait_for(lambda: inspect(stack, "ping") == {"ok": "pong"}, 60, "an answer")
        with listening(stack) as events:
            wait_for(lambda: embed_texts(http, ["again"]).status_code == 200, 60, "an answer")
            wait_for(lambda: "task-succeeded" in kinds(events), 30)
    assert worker.alive


def test_a_full_memory_stops_neither_answers_nor_the_worker(watched: tuple[Stack, Service, Api]) -> None:
    stack, worker, api = watched
    client = stack.valkey.client()
    with api.client(params={"api_key": KEY}) as http, listening(stack) as events:
        vectors(embed_texts(http, ["room"]))
        asking = tools(stack).control.inspect(timeout=10, limit=1)
        asking.ping()
        client.config_set("maxmemory", 1)
        assert inspect(stack, "ping") == {"ok": "pong"}
        before = len(events)
        wait_for(lambda: len(events) > before + 1, 30, "heartbeats")
        client.config_set("maxmemory", 0)
        vectors(embed_texts(http, ["room again"]))
    assert worker.alive


def test_with_the_setting_off_there_is_nothing_of_it(own_stack: Stack) -> None:
    worker, api = own_stack.worker(), own_stack.api()
    own_stack.ready(worker, api, timeout=START)
    client = own_stack.valkey.client()
    with listening(own_stack) as events, api.client() as http:
        vectors(embed_texts(http, ["unseen"]))
        assert tools(own_stack).control.inspect(timeout=2).ping() is None
        assert events == []
        assert client.pubsub_channels("*pidbox*") == []
    assert "_kombu.binding.celery.pidbox" not in left(client)
