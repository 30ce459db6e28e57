"""Celery, configured in the same way for both sides. Its messages hold only references to jobs."""

from __future__ import annotations

from celery import Celery

from clip_queue.shared import transport
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings

TASK = "clip.run"
MESSAGE = 64  # most references in a message
VISIBILITY_TIMEOUT = 6 * 3600  # seconds; a last resort: leases and the reconciler act much earlier


def queue_name(model: str, lane: Lane) -> str:
    """The Celery queue, and so the Redis list, of a model's lane (``reconcile.lua`` has the same format)."""
    return f"clip.{model}.{lane}"


def celery_app(settings: Settings, *, publisher: bool = False) -> Celery:
    """A Celery application. It has no result backend: with one, sending while Redis is down takes 19 s, without 0.6 s.

    Args:
        publisher: it only sends, so each operation may end after ``redis_timeout``. A receiver waits longer for the
            server, so it has no such limit.
    """
    transport.install()
    url = settings.redis_url.get_secret_value()
    app = Celery("clip-queue", broker=url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # A message that is lost with its worker is the reconciler's to send again. Without a record of what is not
            # acknowledged, messages are taken also when the server has reached its maxmemory.
            "ack_emulation": False,
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "queue_order_strategy": "priority",  # queues are read in the given order: interactive first
            "socket_connect_timeout": settings.redis_timeout,
            "socket_timeout": settings.redis_timeout if publisher else None,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        task_ignore_result=True,
        task_acks_late=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_default_queue="clip",
        enable_utc=True,
    )
    return app
