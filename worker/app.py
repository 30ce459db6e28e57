"""The Celery application: ``celery -A clip_queue.worker.app worker --pool threads``.

The models are loaded once, at the signal ``worker_init``, in the process that Celery's threads share. There is no
prefork here, because CUDA does not survive a fork.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from contextlib import suppress
from typing import Any

from celery.signals import (
    after_setup_logger,
    after_setup_task_logger,
    worker_init,
    worker_shutdown,
    worker_shutting_down,
)
from kombu.entity import Exchange, Queue

from clip_queue.shared import garbage, json_log, startup, tracing
from clip_queue.shared.broker import celery_app
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.fields import member
from clip_queue.shared.lane import Lane
from clip_queue.shared.loading import begin_loading, end_loading
from clip_queue.shared.messages import TASK, publish, queue_name
from clip_queue.shared.models import parse_models
from clip_queue.shared.redis_url import BadRedisUrl
from clip_queue.shared.runs import led
from clip_queue.shared.server_check import server_check
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store

log = logging.getLogger(__name__)

PROGRAM = "clip-queue worker"


class Worker:
    """The parts of a worker process: inference engine, job executor and heartbeat."""

    def __init__(self, settings: Settings) -> None:
        """Load the models and start the threads.

        Raises:
            CannotWork, BadRedisUrl: a setting is wrong, a model cannot be loaded, or nothing can work on this Redis.
        """
        store, models = Store.connect(settings), parse_models(settings.models)
        try:
            store.execute(server_check())
            store.execute(begin_loading(models))
        except Unavailable as error:  # then requests wait for less long
            log.warning("the job store could not be looked at: %s", error.message)
        # Only now, since to import torch takes seconds.
        from clip_queue.worker.executor.executor import JobExecutor
        from clip_queue.worker.heartbeat import Heartbeat
        from clip_queue.worker.inference.engine import InferenceEngine

        engine = InferenceEngine(settings)
        worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._store = store
        self.executor = JobExecutor(engine, store, settings, worker_id, ring=self._ring)
        engine.start()
        self.heartbeat = Heartbeat(self.executor, settings)
        self.heartbeat.start()
        self.executor.leading.start()  # a run is held by the heartbeat's lease
        with suppress(Unavailable):
            store.execute(end_loading(models))

    def _ring(self, model: str, lane: Lane, names: list[str]) -> None:
        self._store.execute(publish(model, lane, names))

    def stop(self) -> None:
        """Give back the jobs that are left, end the threads and the lease. Call it after the last message."""
        self.executor.stop()
        self.executor.engine.stop()
        self.heartbeat.stop()


def start(settings: Settings) -> Worker:
    """The worker of this process. Ends the process, with a line on stderr, if it cannot start."""
    try:
        return Worker(settings)
    except (startup.CannotWork, BadRedisUrl) as error:
        startup.stop(PROGRAM, error)
    except Exception as error:  # Celery would log what a signal's receiver raises and go on without a model
        log.critical("the worker could not start", exc_info=True)
        sys.exit(f"{PROGRAM}: {type(error).__name__}")


settings = startup.of_process(PROGRAM)
json_log.install(settings)  # Celery sets up its own logging only when the models are loaded
app = celery_app(settings)
app.conf.update(
    worker_pool="threads",
    worker_concurrency=settings.worker_threads,
    worker_consumer="clip_queue.worker.celery_tools:Consumer",
    # Interactive queues first: the transport reads them in this order.
    task_queues=[
        Queue(name, Exchange(name), routing_key=name)
        for name in (
            *(queue_name(model, lane) for lane in Lane for model in parse_models(settings.models)),
            *(queue_name(led(model), Lane.BULK) for model in parse_models(settings.models)),
        )
    ],
)

# These would log two lines for each message.
for noisy in ("celery.worker.strategy", "celery.app.trace"):
    logging.getLogger(noisy).setLevel(logging.WARNING)


@after_setup_logger.connect
@after_setup_task_logger.connect
def _log(logger: logging.Logger, loglevel: int = logging.WARNING, **_: Any) -> None:
    if loglevel == logging.WARNING:  # Celery's default: the command names no other
        logger.setLevel(settings.log_level.upper())
    json_log.install(settings, logger)


_worker: Worker | None = None


@app.task(name=TASK)
def run(model: str, lane: str, job_ids: list[str], *_: Any, **__: Any) -> None:
    """Process a message. Its jobs are in the store; the message refers to them by id. A later release may say more."""
    if _worker is None:
        raise RuntimeError("a message came before the model was loaded")
    _worker.executor.deliver(model, member(Lane, lane), job_ids)


@worker_init.connect
def _start(**_: Any) -> None:
    global _worker
    tracing.install("clip-queue-worker")
    _worker = start(settings)
    garbage.freeze()


@worker_shutting_down.connect
def _drain(**_: Any) -> None:
    if _worker:
        _worker.heartbeat.drain()


@worker_shutdown.connect
def _stop(**_: Any) -> None:
    if _worker:
        _worker.stop()
    tracing.stop()
