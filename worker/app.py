"""The Celery application: ``celery -A clip_queue.worker.app worker --pool threads``.

The model is loaded once, in ``worker_init``, in the process that Celery's threads share. (CUDA and fork don't mix,
so there is no prefork here.)
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from typing import Any

from celery.signals import worker_init, worker_shutdown, worker_shutting_down
from kombu.entity import Exchange, Queue

from clip_queue.shared.broker import TASK, celery_app, queue_name
from clip_queue.shared.lane import Lane
from clip_queue.shared.models import parse_models
from clip_queue.shared.settings import get_settings
from clip_queue.shared.store import Store
from clip_queue.worker.executor.executor import JobExecutor
from clip_queue.worker.heartbeat import Heartbeat
from clip_queue.worker.inference.engine import InferenceEngine

log = logging.getLogger(__name__)

settings = get_settings()
app = celery_app(settings)
app.conf.update(
    worker_pool="threads",
    worker_concurrency=settings.worker_threads,
    # Interactive queues first: the transport reads them in this order.
    task_queues=[
        Queue(name, Exchange(name), routing_key=name)
        for name in (queue_name(model, lane) for lane in Lane for model in parse_models(settings.models))
    ],
)

# Two lines a message are a log of nothing but traffic.
for noisy in ("celery.worker.strategy", "celery.app.trace"):
    logging.getLogger(noisy).setLevel(logging.WARNING)

_executor: JobExecutor | None = None
_heartbeat: Heartbeat | None = None


@app.task(name=TASK)
def run(model: str, lane: str, job_ids: list[str]) -> None:
    """A message: references to jobs in the store."""
    if _executor is None:
        raise RuntimeError("a message came before the model was loaded")
    _executor.deliver(model, Lane(lane), job_ids)


@worker_init.connect
def _start(**_: Any) -> None:
    global _executor, _heartbeat
    try:
        engine = InferenceEngine(settings)
        worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        _executor = JobExecutor(engine, Store.connect(settings), settings, worker_id)
        engine.start()
        _heartbeat = Heartbeat(_executor, settings)
        _heartbeat.start()
    except Exception as error:  # Celery logs what a signal handler raises and goes on without a model
        log.critical("the worker could not start", exc_info=True)
        sys.exit(f"clip-queue worker: {error}")


@worker_shutting_down.connect
def _drain(**_: Any) -> None:
    if _heartbeat:
        _heartbeat.drain()


@worker_shutdown.connect
def _stop(**_: Any) -> None:
    if _executor and _heartbeat:
        _executor.stop()
        _executor.engine.stop()
        _heartbeat.stop()
