"""What a worker does with a job of the kind ``embed_shard``: it reads, embeds and writes one shard of a dataset."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import OutputError, WrongModel
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.markers import Marker, marker_if_complete
from clip_queue.bulk.output.plan_file import PlanFile
from clip_queue.bulk.output.shard_reference import ShardReference
from clip_queue.bulk.output.writer import ShardWriter
from clip_queue.bulk.shard.halves import Embedded
from clip_queue.bulk.shard.pipeline import Abandoned, Pipeline
from clip_queue.bulk.shard.turns import turns
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Inputs, Job, JobResult, State
from clip_queue.shared.ops import Completion
from clip_queue.shared.runs import model_of
from clip_queue.sources import registry
from clip_queue.sources.registry import FORMATS
from clip_queue.sources.rows_digest import RowsDigest
from clip_queue.sources.source import Source, SourceError
from clip_queue.worker.inference.engine import InferenceEngine

log = logging.getLogger(__name__)


class ShardHandler:
    """The :class:`clip_queue.worker.executor.handlers.JobHandler` of a shard."""

    def __init__(self, job: Job, inputs: Inputs, engine: InferenceEngine) -> None:
        self.job = job
        self.done = 0
        self.failed = 0
        self._inputs = inputs
        self._engine = engine
        self._confined = False
        self._model_name = model_of(job.model)
        self._abandoned = threading.Event()
        self._about = {"job_id": job.id, "model": self._model_name}  # in log lines

    def abandon(self) -> None:
        self._abandoned.set()

    def run(self) -> Completion | None:
        try:
            marker = self._process(ShardReference.from_inputs(self._inputs))
        except Abandoned:
            return None
        except ClipError as error:
            return self._failure(error)
        except OSError as error:  # of the output: an error of the source is a SourceError by now
            return self._failure(OutputError.because(error))
        except Exception as error:
            log.exception("a shard could not be done", extra=self._about)
            return self._failure(ClipError(f"The shard could not be done ({type(error).__name__}: {error})."))
        self.done, self.failed = marker["rows"], marker["failed"]
        result = JobResult(fingerprint=self._engine.models[self._model_name].fingerprint, timings=marker["seconds"])
        return Completion(self.job.id, State.SUCCEEDED, result, self.done, self.failed)

    def _check(self) -> None:
        if self._abandoned.is_set():
            raise Abandoned

    def _failure(self, error: ClipError) -> Completion:
        log.error("shard failed: %s", error.message, extra=self._about)
        return Completion(self.job.id, State.FAILED, JobResult(error=error.to_wire()), self.done, self.failed)

    def _process(self, reference: ShardReference) -> Marker:
        began = time.monotonic()
        output = Output(reference.output)
        self._confined = reference.confined
        plan = self._plan(output, reference.plan)
        with turns.take((reference.output, reference.plan, reference.shard), self._check):
            return self._embed(output, plan, reference.shard, began)

    def _embed(self, output: Output, plan: RunPlan, shard: int, began: float) -> Marker:
        if marker := marker_if_complete(output, plan, shard):
            return marker  # a duplicate, or the store forgot that it ended
        pipeline = Pipeline(self._engine, plan, self._abandoned.is_set)
        planned = PlanFile(output).shard(shard)
        rows = registry.read(self._source(plan), planned.pieces, self._engine.settings)
        if plan.options.limit is not None:
            rows = islice(rows, planned.rows)  # it may end in the middle of a tar
        digest = RowsDigest(plan.source) if FORMATS[plan.source.format].has_rows else None
        with ShardWriter(output, plan, shard) as writer:
            self._write(writer, pipeline.embed(digest.of(rows) if digest else rows))
            self._check()
            if self._plan(output, plan.id) != plan:  # this process was stopped for long: the output is another one
                raise SourceError(f"{output.url} was updated meanwhile")
            seconds = {"all": time.monotonic() - began, **pipeline.waited}
            return writer.finish(seconds, digest=digest.hex() if digest else None)

    def _source(self, plan: RunPlan) -> Source:
        """A plan's source, confined to what the settings allow if the run came over HTTP."""
        return replace(plan.source, within=tuple(self._engine.settings.bulk_sources)) if self._confined else plan.source

    def _plan(self, output: Output, plan_id: str) -> RunPlan:
        found = manifest.load(output)
        if found is None or found.plan.id != plan_id:
            raise SourceError(f"worker on {self.job.worker} does not see the run's plan in {output.url}")
        model = self._engine.models.get(self._model_name)
        if model is None or model.fingerprint != found.plan.model.fingerprint:
            has = model.fingerprint if model else "nothing"
            raise WrongModel(
                f"the plan is for {self._model_name} {found.plan.model.fingerprint}; worker {self.job.worker} has {has}"
            )
        return found.plan

    def _write(self, writer: ShardWriter, embedded: Iterable[Embedded]) -> None:
        for part in embedded:
            if part.rows:
                writer.write(part.rows, part.vectors, part.cut)
                self.done += len(part.rows)
            if part.failed:
                writer.fail(*part.failed)
                self.failed += 1
