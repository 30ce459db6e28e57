"""A shard in work: what a worker does with a job of the kind ``embed_shard``."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

import orjson

from clip_queue.bulk.output.layout import Output, Plan
from clip_queue.bulk.output.plan_file import PlanFile
from clip_queue.bulk.output.shard_job import OutputError, WrongModel, explained
from clip_queue.bulk.output.writer import ShardWriter
from clip_queue.bulk.run.resume import whole
from clip_queue.bulk.shard.pipeline import Abandoned, Mapped, Mapper
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Answer, Inputs, Job, State
from clip_queue.shared.ops import Ending
from clip_queue.sources import reader
from clip_queue.sources.source import SourceError
from clip_queue.worker.executor.executor import Engine

log = logging.getLogger(__name__)


class ShardWork:
    """:class:`clip_queue.worker.executor.handlers.Work` of a shard."""

    def __init__(self, job: Job, inputs: Inputs, engine: Engine) -> None:
        self.job = job
        self.done = 0
        self.failed = 0
        self._inputs = inputs
        self._engine = engine
        self._abandoned = threading.Event()

    def abandon(self) -> None:
        self._abandoned.set()

    def run(self) -> Ending | None:
        try:
            marker = self._embed(**orjson.loads(self._inputs.items[0]))
        except Abandoned:
            return None
        except ClipError as error:
            return self._failure(error)
        except OSError as error:  # the output's: what the source raises is a SourceError by now
            return self._failure(OutputError(explained(error)))
        except Exception as error:
            log.exception("a shard could not be done")
            return self._failure(ClipError(f"The shard could not be done ({type(error).__name__}: {error})."))
        self.done, self.failed = marker["rows"], marker["failed"]
        answer = Answer(fingerprint=self._engine.clips[self.job.model].fingerprint, timings=marker["seconds"])
        return Ending(self.job.id, State.SUCCEEDED, answer, self.done, self.failed)

    def _failure(self, error: ClipError) -> Ending:
        log.error("shard failed: %s", error.message)
        return Ending(self.job.id, State.FAILED, Answer(error=error.to_wire()), self.done, self.failed)

    def _wanted(self) -> bool:
        # A worker that drains gives its shards back at once: they take longer than it has.
        return not self._abandoned.is_set() and not self._engine.draining.is_set()

    def _embed(self, output: str, plan: str, shard: int) -> dict[str, Any]:
        began = time.monotonic()
        folder = Output(output)
        the_plan = self._plan(folder, plan)
        if marker := whole(folder, the_plan, shard):
            return marker  # a duplicate, or its end was not heard of
        mapper = Mapper(self._engine, the_plan, self._wanted)
        pieces = PlanFile(folder).shard(shard).pieces
        with ShardWriter(folder, the_plan, shard) as writer:
            self._write(writer, mapper.map(reader.read(the_plan.source, pieces)))
            return writer.finish({"all": time.monotonic() - began, **mapper.waited})

    def _plan(self, folder: Output, plan_id: str) -> Plan:
        loaded = folder.load()
        if loaded is None or loaded[0].id != plan_id:
            raise SourceError(f"worker on {self._engine.id} does not see the run's plan in {folder.url}")
        clip = self._engine.clips.get(self.job.model)
        if clip is None or clip.fingerprint != loaded[0].model.fingerprint:
            has = clip.fingerprint if clip else "nothing"
            raise WrongModel(
                f"the plan is for {self.job.model} {loaded[0].model.fingerprint}; worker {self._engine.id} has {has}"
            )
        return loaded[0]

    def _write(self, writer: ShardWriter, mapped: Iterable[Mapped]) -> None:
        for part in mapped:
            if part.rows:
                writer.write(part.rows, part.vectors)
                self.done += len(part.rows)
            if part.failed:
                writer.fail(*part.failed)
                self.failed += 1
