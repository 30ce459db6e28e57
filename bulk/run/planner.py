"""The planner: cuts a source into shards and writes them down, before anybody is asked to do them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.plan_file import write_plan
from clip_queue.bulk.run import first_look
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.workers import NotStarted
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings
from clip_queue.sources.looking import heeding
from clip_queue.sources.place import with_places
from clip_queue.sources.source import Source

BATCH_CUDA = 256  # rows a forward pass
BATCH_CPU = 32
BATCH_SHARED = 8  # on a CPU whose workers may have requests as well, from which a larger pass would take the caches

FEW_SHARDS = 64  # a source with fewer is cut smaller, so that there is work for every worker to the end
LEAST_ROWS = 250  # rows that a shard is not cut below

SAY_INTERVAL = 2.0  # seconds between lines about the planning


class Planner:
    """Plans a run: first its shards, then, once the model is known, the whole of it."""

    def __init__(
        self,
        output: Output,
        request: EmbedRequest,
        settings: Settings,
        say: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._output, self._request, self._settings = output, request, settings
        self._say, self._should_stop = say, should_stop
        self._said = time.monotonic()
        self._began = time.time()

    def write_shards(self) -> PlannedShards:
        """Look at the source and write the shards' pieces to the output's plan file.

        Raises:
            SourceError: there is nothing to embed, or it cannot be read.
            OutputError: the plan file cannot be written.
            NotStarted: it was told to stop.
        """
        asked = self._request.shard_size
        planned = self._cut(asked or PlanOptions().shard_size)
        if asked and planned.source.format in ("webdataset", "zip"):
            self._say("the shard size is not used: each archive is a shard of its own")
        smaller = asked or smaller_shard_size(planned.rows)
        return planned if smaller == planned.shard_size else self._cut(smaller)

    def plan(self, planned: PlannedShards, model: ModelInfo, device: str, *, shared_workers: bool) -> RunPlan:
        """The plan of a run with ``model`` on ``device``. ``shared_workers``: the workers may have requests as well."""
        on_cuda = device.partition(":")[0] == "cuda"
        batch_size = BATCH_CUDA if on_cuda else BATCH_SHARED if shared_workers else BATCH_CPU
        options = self._request.plan_options(PlanOptions(batch_size=batch_size))
        options = replace(options, shard_size=planned.shard_size)
        return RunPlan(secrets.token_hex(8), planned.source, model, options, planned.shards, planned.rows, self._began)

    def _cut(self, shard_size: int) -> PlannedShards:
        asked = self._request.plan_options(PlanOptions())
        with heeding(self._stop_if_asked):
            source, shards = first_look.plan_shards(self._request.source, asked, shard_size, self._settings)
            self._request.check_used(source)
            try:
                count, rows = write_plan(self._output, shards, self._progress)
            except OSError as error:
                raise OutputError.because(error) from error
        return PlannedShards(with_places(source), shard_size, count, rows)

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise NotStarted("stopped while it was planning")

    def _progress(self, shards: int, rows: int) -> None:
        self._stop_if_asked()
        if time.monotonic() - self._said > SAY_INTERVAL:
            self._said = time.monotonic()
            self._say(f"planning: {rows:,} rows in {shards:,} shards so far")


@dataclass(frozen=True)
class PlannedShards:
    """A source, completed, whose shards are in the plan file; ``rows`` is None where only reading tells."""

    source: Source
    shard_size: int
    shards: int
    rows: int | None


def smaller_shard_size(rows: int | None) -> int:
    """Rows a shard of a source with so many, where the caller gave no size: the default, or less."""
    default = PlanOptions().shard_size
    return default if rows is None else min(default, max(LEAST_ROWS, -(-rows // FEW_SHARDS)))
