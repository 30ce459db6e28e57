"""The workers of a run: workers that are started here, or the live workers of a given Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from pydantic import SecretStr

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.shared.errors import ClipError, Unavailable
from clip_queue.shared.job import Kind
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings, cores
from clip_queue.shared.store import Store
from clip_queue.shared.workers import WorkerInfo, workers
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.stack.log_file import LogFile
from clip_queue.stack.machine import visible_gpus

POLL_INTERVAL = 0.25  # seconds
MOST_WORKERS = 4  # that are started on a CPU by default


class NoWorker(ClipError):
    """No live worker does the run's shards."""

    code, status = "no_worker", 503


class NotStarted(ClipError):
    """The run was told to stop before any shard was submitted."""

    code = "not_started"


@contextmanager
def locked(
    output: Output, wait: float = 0.0, should_stop: Callable[[], bool] = lambda: False, *, shared: bool = False
) -> Iterator[None]:
    """Hold an output for this command, so that no other command on this machine writes to it.

    Args:
        wait: seconds that another may take to let go of it.
        shared: none but those that share it too, for parts of it.

    Raises:
        OutputError: another run has it, or it cannot be written.
        NotStarted: the run was told to stop while it waited.
    """
    until = time.monotonic() + wait
    try:
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(output.lock(shared=shared))
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise OutputError(f"another run is at work in {output.url}: wait for it, or stop it") from None
                if should_stop():
                    raise NotStarted("stopped while another run was at work in the output")
                time.sleep(POLL_INTERVAL)
            yield
        if shared and (found := manifest.load(output)) and found.result:
            with suppress(OSError), output.lock():  # not while another part is at its end: that one tidies up
                output.clean()
    except OSError as error:
        raise OutputError.because(error) from error


@contextmanager
def started_workers(
    settings: Settings,
    number: int | None,
    redis_url: str | None,
    say: Callable[[str], None],
    should_stop: Callable[[], bool],
    log_file: LogFile | None = None,
) -> Iterator[tuple[Settings, Callable[[], None]]]:
    """Settings whose Redis has workers, and a check that raises if the workers are gone for good. ``log_file`` gets
    what the processes log that are started here."""
    if redis_url is not None:
        yield settings.model_copy(update={"redis_url": SecretStr(redis_url)}), _nothing
        return
    stack = EmbeddedStack(settings, workers=number or default_workers(settings), apis=0, say=say, log_file=log_file)
    try:
        stack.start(timeout=3600, should_stop=should_stop)

        def check() -> None:
            if not stack.alive:
                raise NoWorker("the supervisor of the workers has failed")

        yield stack.settings, check
    except KeyboardInterrupt:  # Ctrl-C where nobody catches the signal: in a notebook, in a script
        stack.hurry()
        raise
    finally:
        if should_stop():
            stack.hurry()  # the shards under way are given up anyway: there is nothing to wait for
        stack.stop()


def default_workers(settings: Settings) -> int | None:
    """The number of worker processes on a machine that does nothing else; None: one a GPU.

    On a CPU one a core: decoding and the forward pass then never wait for each other's threads, which is worth half as
    much again. No more than four, since each holds the model.
    """
    on_gpu = settings.device in ("auto", "cuda") and visible_gpus()
    return None if on_gpu else min(MOST_WORKERS, cores())


def find_workers(store: Store, model: str, should_stop: Callable[[], bool], timeout: float) -> list[WorkerInfo]:
    """The live workers that can do shards of a model, looked for ``timeout`` seconds.

    Raises:
        NoWorker: there are none.
        NotStarted: the run was told to stop meanwhile.
    """
    until = time.monotonic() + timeout
    reason = "no worker is alive there"
    while time.monotonic() < until:
        if should_stop():
            raise NotStarted("stopped while it was looking for workers")
        try:
            alive = store.execute(workers())
        except Unavailable as error:
            reason = error.message
        else:
            if able := [w for w in alive if Kind.EMBED_SHARD in w.work and any(m.name == model for m in w.models)]:
                return able
            if names := sorted({m.name for w in alive for m in w.models}):
                without = ", without bulk" if model in names else ""
                reason = f"the workers there serve {', '.join(names)}{without}"
        time.sleep(POLL_INTERVAL)
    raise NoWorker(f"nobody does bulk work for {model} on this Redis: {reason}")


def common_model(alive: list[WorkerInfo], name: str) -> ModelInfo:
    """The model that all workers serve. Raises :class:`NoWorker` if their models differ."""
    found = {m.fingerprint: m for w in alive for m in w.models if m.name == name}
    if len(found) > 1:
        kinds = ", ".join(f"{m.fingerprint} ({m.precision}, resize {m.resize})" for m in found.values())
        raise NoWorker(
            f"the workers' {name} differ ({kinds}): set one CLIP_QUEUE_PRECISION and one CLIP_QUEUE_RESIZE for all"
        )
    return next(iter(found.values()))


def _nothing() -> None:
    """The workers of a Redis that was given are somebody else's to restart."""
