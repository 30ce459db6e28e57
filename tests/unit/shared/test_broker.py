"""How Celery is configured."""

from __future__ import annotations

from clip_queue.shared.broker import celery_app
from clip_queue.shared.lane import Lane
from clip_queue.shared.messages import queue_name
from clip_queue.shared.settings import Settings

SETTINGS = Settings.model_validate({"redis_url": "redis://host:1/2", "redis_timeout": 0.7})


def test_a_worker_waits_for_the_server_as_long_as_it_takes() -> None:
    app = celery_app(SETTINGS)
    assert app.conf.broker_url == "redis://host:1/2"
    assert app.conf.broker_transport_options["socket_timeout"] is None
    assert app.conf.broker_transport_options["socket_connect_timeout"] == 0.7
    assert app.conf.result_backend is None
    assert app.conf.task_acks_late
    assert app.conf.worker_prefetch_multiplier == 1


def test_each_lane_of_a_model_is_a_queue() -> None:
    assert [queue_name("m", lane) for lane in Lane] == ["clip.m.interactive", "clip.m.background", "clip.m.bulk"]


def test_over_tls_the_broker_verifies_the_server_as_the_store_does() -> None:
    app = celery_app(Settings.model_validate({"redis_url": "rediss://host"}))
    assert app.conf.broker_use_ssl == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    with app.connection_for_read() as connection:
        assert connection.ssl == app.conf.broker_use_ssl


def test_sentinels_are_asked_by_the_broker_with_their_password_and_a_timeout() -> None:
    url = "sentinel://:p@a;sentinel://:p@b:1/3?master_name=jobs&sentinel_password=sp"
    app = celery_app(Settings.model_validate({"redis_url": url, "redis_timeout": 0.7}))
    options = app.conf.broker_transport_options
    assert app.conf.broker_url == "sentinel://:p@a:26379/3;sentinel://:p@b:1/3"
    assert options["master_name"] == "jobs"
    asked = options["sentinel_kwargs"]
    assert (asked["password"], asked["socket_timeout"], asked["socket_connect_timeout"]) == ("sp", 0.7, 0.7)
    assert options["socket_timeout"] is None, "a receiver waits for the master as long as it takes"


def test_workers_are_looked_at_only_where_a_setting_says_so() -> None:
    for wanted in (False, True):
        conf = celery_app(SETTINGS.model_copy(update={"celery_tools": wanted})).conf
        assert (conf.worker_enable_remote_control, conf.worker_send_task_events) == (wanted, wanted)
    assert not Settings.model_fields["celery_tools"].default
