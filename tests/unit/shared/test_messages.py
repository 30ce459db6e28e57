"""Celery's messages as the scripts push them: what send_task makes, and how jobs join one that waits."""

from __future__ import annotations

import json
from typing import Any

import fakeredis
import pytest
from celery.app import backends
from kombu import Connection

from clip_queue.shared.broker import celery_app
from clip_queue.shared.lane import Lane
from clip_queue.shared.messages import MESSAGE, TASK, _app, publish, queue_name, to
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from tests.taken import read

MODEL = "m"


@pytest.fixture
def store() -> Store:
    return Store(fakeredis.FakeRedis())


def ids(*numbers: int) -> list[str]:
    return [f"{number:032x}" for number in numbers]


def waiting(store: Store, lane: Lane = Lane.INTERACTIVE) -> list[list[str]]:
    """What the messages of a queue name, the oldest first."""
    found: Any = store.client.lrange(queue_name(MODEL, lane), 0, -1)
    messages = [read(data) for data in reversed(found)]
    assert all(message[:2] == (MODEL, lane) for message in messages)
    return [references for _, _, references in messages]


def test_only_the_first_message_looks_through_the_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 0.1 s, in which the API answers nobody."""
    looked: list[str] = []
    find = backends.load_extension_class_names
    monkeypatch.setattr(backends, "load_extension_class_names", lambda name: looked.append(name) or find(name))
    _app.cache_clear()
    for lane in Lane:
        to("never named before", lane)
    assert len(looked) == 1


def test_a_message_is_what_celery_sends(store: Store) -> None:
    """An upgrade that changes the form of either fails here."""
    app = celery_app(Settings())
    with Connection("memory://") as connection, connection.channel() as channel:
        queue = queue_name(MODEL, Lane.INTERACTIVE)
        app.send_task(TASK, (MODEL, Lane.INTERACTIVE, ids(1)), queue=queue, producer=app.amqp.Producer(channel))
        sent: dict[str, Any] = channel._get(queue)
        body = json.loads(channel.decode_body(sent["body"], sent["properties"]["body_encoding"]))
    store.execute(publish(MODEL, Lane.INTERACTIVE, ids(1)))
    made: dict[str, Any] = json.loads(store.client.rpop(queue_name(MODEL, Lane.INTERACTIVE)))  # type: ignore[arg-type]
    assert json.loads(made["body"]) == body
    assert made["properties"]["body_encoding"] is None
    assert made["headers"]["id"] == made["headers"]["root_id"] == made["properties"]["correlation_id"]
    of_each = {
        "headers": {"id", "root_id", "argsrepr", "origin", "ignore_result"},
        "properties": {"correlation_id", "delivery_tag", "body_encoding", "reply_to", "argsrepr"},
    }
    assert made.keys() == sent.keys()
    for part, differ in of_each.items():
        assert {k: v for k, v in made[part].items() if k not in differ} == {
            k: v for k, v in sent[part].items() if k not in differ
        }
        assert sent[part].keys() - made[part].keys() == set()


def test_interactive_jobs_join_the_newest_message_until_it_is_full(store: Store) -> None:
    for number in range(MESSAGE + 2):
        store.execute(publish(MODEL, Lane.INTERACTIVE, ids(number)))
    assert waiting(store) == [ids(*range(MESSAGE)), ids(MESSAGE, MESSAGE + 1)]
    store.execute(publish(MODEL, Lane.INTERACTIVE, ids(*range(100, 100 + MESSAGE))))
    assert waiting(store)[2] == ids(*range(100, 100 + MESSAGE))


def test_a_message_of_an_earlier_release_is_left_as_it_is(store: Store) -> None:
    queue = queue_name(MODEL, Lane.INTERACTIVE)
    other = json.dumps({"body": "W1sibSJdXQ==", "properties": {"body_encoding": "base64"}})
    store.client.lpush(queue, other)
    store.execute(publish(MODEL, Lane.INTERACTIVE, ids(1)))
    assert store.client.rpop(queue) == other.encode()
    assert waiting(store) == [ids(1)]


def test_a_message_that_says_there_is_work_is_not_added_to_and_enough_are_enough(store: Store) -> None:
    """Its references may be the workers that have passed it on."""
    for _ in range(3):
        store.execute(publish(MODEL, Lane.BACKGROUND, ["a-worker"]))
    assert waiting(store, Lane.BACKGROUND) == [["a-worker"]] * 3
    for _ in range(2 * MESSAGE):
        store.execute(publish(MODEL, Lane.BACKGROUND, ids(1)))
    assert len(waiting(store, Lane.BACKGROUND)) == MESSAGE


def test_a_name_with_signs_of_json_is_a_name(store: Store) -> None:
    model = 'local-dir:a"b\\c%1'
    store.execute(publish(model, Lane.INTERACTIVE, ids(1)))
    store.execute(publish(model, Lane.INTERACTIVE, ids(2)))
    (data,) = store.client.lrange(queue_name(model, Lane.INTERACTIVE), 0, -1)  # type: ignore[misc]
    assert read(data) == (model, Lane.INTERACTIVE, ids(1, 2))
