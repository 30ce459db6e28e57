"""How Celery is configured."""

from __future__ import annotations

from clip_queue.shared.broker import celery_app, queue_name
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings

SETTINGS = Settings.model_validate({"redis_url": "redis://host:1/2", "redis_timeout": 0.7})


def test_a_publisher_gives_up_after_the_timeout_and_a_worker_waits_longer() -> None:
    publisher, worker = celery_app(SETTINGS, publisher=True), celery_app(SETTINGS)
    assert publisher.conf.broker_url == worker.conf.broker_url == "redis://host:1/2"
    assert publisher.conf.broker_transport_options["socket_timeout"] == 0.7
    assert worker.conf.broker_transport_options["socket_timeout"] is None
    for app in (publisher, worker):
        assert app.conf.broker_transport_options["socket_connect_timeout"] == 0.7
        assert app.conf.result_backend is None
        assert app.conf.task_acks_late
        assert app.conf.worker_prefetch_multiplier == 1


def test_each_lane_of_a_model_is_a_queue() -> None:
    assert [queue_name("m", lane) for lane in Lane] == ["clip.m.interactive", "clip.m.background", "clip.m.bulk"]
