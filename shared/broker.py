"""Celery, configured for workers: they receive its messages (:mod:`clip_queue.shared.messages`)."""

from __future__ import annotations

from typing import Any

from celery import Celery

from clip_queue.shared import transport
from clip_queue.shared.redis_client import sentinel_options
from clip_queue.shared.redis_url import RedisUrl, parse_redis_url
from clip_queue.shared.settings import Settings

VISIBILITY_TIMEOUT = 6 * 3600  # seconds; a last resort: leases and the reconciler act much earlier


def _sentinel(url: RedisUrl, settings: Settings) -> dict[str, Any]:
    if url.master_name is None:
        return {}
    return {"master_name": url.master_name, "sentinel_kwargs": sentinel_options(url, settings)}


def celery_app(settings: Settings) -> Celery:
    """A Celery application that receives. It waits for the server as long as it takes; it has no result backend."""
    transport.install()
    url = parse_redis_url(settings.redis_url.get_secret_value())
    app = Celery("clip-queue", broker=url.for_kombu(), set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_use_ssl=url.tls or False,
        broker_transport_options={
            **_sentinel(url, settings),
            # A message that is lost with its worker is the reconciler's to send again. Without a record of what is not
            # acknowledged, messages are taken also when the server has reached its maxmemory.
            "ack_emulation": False,
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "priority_steps": [0],  # a list for each queue, and not one for each of four priorities: all are waited at
            "queue_order_strategy": "priority",  # queues are read in the given order: interactive first
            "socket_connect_timeout": settings.redis_timeout,
            "socket_timeout": None,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        task_ignore_result=True,
        task_acks_late=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=settings.celery_tools,
        worker_send_task_events=settings.celery_tools,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_default_queue="clip",
        enable_utc=True,
    )
    return app
