"""What a worker answers to Celery's remote commands, and how it sends events."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import control

from clip_queue.shared.broker import celery_app
from clip_queue.shared.settings import Settings
from clip_queue.worker.celery_tools import LOOKING, REFUSED, EventDispatcher, commands

SENTINELS = "sentinel://:p1@a;sentinel://:p2@b/3?sentinel_password=p3"


def test_commands_that_look_are_celerys_and_all_others_are_refused() -> None:
    known = dict(control.Panel.data)
    ours = commands(commands(known))
    assert ours.keys() == known.keys()
    for name in ("shutdown", "revoke", "rate_limit", "pool_shrink", "cancel_consumer", "objgraph", "hello", "no_such"):
        assert ours.get(name, ours["terminate"])(None, anything=1) == {"error": REFUSED}
    assert {name for name in known if known[name].__name__ in LOOKING} >= LOOKING
    assert ours["ping"] is known["ping"]


@pytest.mark.parametrize("url", [SENTINELS, "unix://:p1@/run/redis.sock"])
def test_what_a_worker_tells_of_its_broker_has_no_password(url: str) -> None:
    app = celery_app(Settings.model_validate({"redis_url": url}))
    with app.connection_for_read() as connection:
        told = {"broker": connection.info(), "pid": 1}
    assert "p1" in str(told), "Celery's own names it"
    state = SimpleNamespace(app=app, consumer=SimpleNamespace(controller=SimpleNamespace(stats=lambda: told)))
    ours = commands(dict(control.Panel.data))
    assert ours["stats"](state) == {"broker": {"transport": told["broker"]["transport"]}, "pid": 1}
    said = str([ours[name](state) for name in ("stats", "conf", "report")])
    assert not any(password in said for password in ("p1", "p2", "p3")), said


def test_an_event_that_comes_while_others_are_sent_goes_with_the_next() -> None:
    dispatcher = EventDispatcher.__new__(EventDispatcher)
    sent: list[list[str]] = []
    dispatcher._group_buffer, dispatcher.mutex, dispatcher.producer = {"task": ["one"]}, threading.Lock(), None

    def publish(events: list[str], *_: Any) -> None:
        sent.append(events)
        if len(sent) == 1:
            dispatcher._group_buffer["task"].append("two")

    dispatcher._publish = publish
    for _ in range(3):
        dispatcher.flush(errors=False)
    assert sent == [["one"], ["two"]]
