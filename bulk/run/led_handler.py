"""What a worker does with a run that it leads: it starts the process that does (:mod:`clip_queue.bulk.run.led`), and
waits for it. A process that was killed is started again; what ends the worker ends the process."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from threading import Event
from typing import IO, Any

import orjson

from clip_queue.bulk.run.lead import Order
from clip_queue.shared.errors import ClipError, Unreadable, WorkerLost
from clip_queue.shared.job import Inputs, Job, JobResult, State
from clip_queue.shared.ops import Completion
from clip_queue.shared.runs import RunRequest
from clip_queue.worker.inference.decode_helpers import environment
from clip_queue.worker.inference.engine import InferenceEngine

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "clip_queue.bulk.run.led")
POLL_INTERVAL = 0.25  # seconds between checks whether the run was abandoned
STOP_TIMEOUT = 5.0  # seconds that the process has to end by itself
LINE = 2**24  # most bytes of a line


class RunHandler:
    """The :class:`clip_queue.worker.executor.handlers.JobHandler` of a run."""

    def __init__(self, job: Job, inputs: Inputs, engine: InferenceEngine) -> None:
        self.job = job
        self.done = 0
        self.failed = 0
        self._inputs = inputs
        self._settings = engine.settings
        self._abandoned = Event()

    def abandon(self) -> None:
        self._abandoned.set()

    def run(self) -> Completion | None:
        try:
            request = RunRequest.from_inputs(self._inputs)
            order = Order(self.job.id, self.job.model, self.job.owner, self.job.worker, asdict(request))
            outcome = self._lead(order)
        except Unreadable as error:
            return self._failure(error.to_wire())
        except Exception as error:
            log.exception("a run could not be led")
            return self._failure(ClipError(f"The run could not be led ({type(error).__name__}: {error}).").to_wire())
        if self._abandoned.is_set() or outcome.get("stopped"):
            return None
        report = outcome.get("report") or {}
        if why := outcome.get("error"):
            return self._failure(why, report)
        self.done, self.failed = report["rows"], report["failed"]
        result = JobResult(fingerprint=report["fingerprint"], report=report)
        return Completion(self.job.id, State.SUCCEEDED, result, self.done, self.failed)

    def _failure(self, error: dict[str, Any], report: dict[str, Any] | None = None) -> Completion:
        log.error("run failed: %s", error["message"])
        result = JobResult(error=error, report=report or None)
        return Completion(self.job.id, State.FAILED, result, self.done, self.failed)

    def _lead(self, order: Order) -> dict[str, Any]:
        """Have the run led. What the process said last; it is started again if it ends without a last word."""
        deaths = 0
        while not self._abandoned.is_set():
            before = self.done + self.failed
            process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**environment(), **self._settings.env()},
            )
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(order.to_line())
                    process.stdin.flush()
                for said in self._lines(process, process.stdout):
                    if "done" not in said:
                        return said
                    self.done, self.failed = said["done"], said["failed"]
            finally:
                _end(process)
            if self._abandoned.is_set():
                break
            deaths = 1 if self.done + self.failed > before else deaths + 1
            log.error("the process that led a run has ended with %s", process.returncode)
            if deaths >= self._settings.max_attempts:
                raise_lost(process.returncode)
        return {"stopped": True}

    def _lines(self, process: subprocess.Popen[bytes], out: IO[bytes]) -> Iterator[dict[str, Any]]:
        """What the process says. It is told to stop when the run is abandoned, and killed if it does not."""
        buffer, told = b"", 0.0
        while True:
            if self._abandoned.is_set() and not told:
                told = time.monotonic()
                process.terminate()
            if told and time.monotonic() - told > STOP_TIMEOUT:
                return
            if not select.select([out], [], [], POLL_INTERVAL)[0]:
                continue
            data = os.read(out.fileno(), 65536)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            if len(buffer) > LINE:
                raise ClipError("The process that leads the run says too much.")
            yield from map(orjson.loads, lines)


def raise_lost(status: int) -> None:
    raise WorkerLost(
        f"The process that led the run ended each time (status {status}); the same submission again goes on."
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have a process ended, and let go of it."""
    try:
        process.wait(POLL_INTERVAL)  # after its last word it ends by itself
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            log.warning("process %d, which led a run, was killed and has not ended", process.pid)
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe:
                pipe.close()
