"""Who does the shards: workers started here, or those that are alive on a Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import SecretStr

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.shard_job import OutputError, explained
from clip_queue.bulk.run.runner import NoWorker
from clip_queue.shared.errors import ClipError, Unavailable
from clip_queue.shared.job import Kind
from clip_queue.shared.settings import Settings, cores
from clip_queue.shared.store import Store
from clip_queue.shared.workers import ModelInfo, WorkerInfo, workers
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.stack.machine import visible_gpus

FIND_WORKERS = 60.0  # seconds to look for live workers on a Redis that was given
LOOK = 0.25
MOST_WORKERS = 4  # that are started on a CPU unless told otherwise


class NotBegun(ClipError):
    """It was told to stop before there was anything to give back."""

    code = "not_begun"


@contextmanager
def locked(where: Output) -> Iterator[None]:
    """One command an output at a time, as far as this machine can tell."""
    try:
        with where.lock():
            yield
    except BlockingIOError:
        raise OutputError(f"another run is at work in {where.url}: wait for it, or stop it") from None
    except OSError as error:
        raise OutputError(explained(error)) from error


@contextmanager
def served(
    settings: Settings,
    number: int | None,
    redis_url: str | None,
    say: Callable[[str], None],
    told_to_stop: Callable[[], bool],
) -> Iterator[tuple[Settings, Callable[[], None]]]:
    """Settings whose Redis has workers, and a check that raises if they cannot come back."""
    if redis_url is not None:
        yield settings.model_copy(update={"redis_url": SecretStr(redis_url)}), _nothing
        return
    stack = EmbeddedStack(settings, workers=number or default_workers(settings), api=False, say=say)
    try:
        stack.start(timeout=3600, given_up=told_to_stop)

        def check() -> None:
            if not stack.alive:
                raise NoWorker("the supervisor of the workers has failed")

        yield stack.settings, check
    finally:
        if told_to_stop():
            stack.hurry()  # what runs is given up anyway: nothing to wait for
        stack.stop()


def default_workers(settings: Settings) -> int | None:
    """Worker processes where nobody else uses the machine; None: one a GPU.

    On a CPU one a core: decoding and the forward pass then never wait for each other's threads, which is worth half as
    much again. No more than four, since each holds the model.
    """
    on_gpu = settings.device in ("auto", "cuda") and visible_gpus()
    return None if on_gpu else min(MOST_WORKERS, cores())


def find_workers(settings: Settings, model: str, told_to_stop: Callable[[], bool]) -> list[WorkerInfo]:
    """The live workers that can do shards of a model.

    Raises:
        NoWorker: there are none.
        NotBegun: told to stop while looking.
    """
    store = Store.connect(settings)
    until = time.monotonic() + FIND_WORKERS
    why = "no worker is alive there"
    try:
        while time.monotonic() < until:
            if told_to_stop():
                raise NotBegun("stopped while it was looking for workers")
            try:
                alive = store.run(workers())
                able = [w for w in alive if Kind.EMBED_SHARD in w.work and any(m.name == model for m in w.models)]
                if able:
                    return able
                served = sorted({m.name for w in alive for m in w.models})
                if served:
                    why = f"the workers there serve {', '.join(served)}" + (
                        "" if model not in served else ", without bulk"
                    )
            except Unavailable as error:
                why = error.message
            time.sleep(LOOK)
        raise NoWorker(f"nobody does bulk work for {model} on this Redis: {why}")
    finally:
        store.close()


def the_model(alive: list[WorkerInfo], name: str) -> ModelInfo:
    """The model as all workers have it. Raises :class:`NoWorker` where they differ."""
    found = {m.fingerprint: m for w in alive for m in w.models if m.name == name}
    if len(found) > 1:
        kinds = ", ".join(f"{m.fingerprint} ({m.precision}, resize {m.resize})" for m in found.values())
        raise NoWorker(
            f"the workers' {name} differ ({kinds}): set one CLIP_QUEUE_PRECISION and one CLIP_QUEUE_RESIZE for all"
        )
    return next(iter(found.values()))


def _nothing() -> None:
    """Workers that are not ours come back, or not, without us."""
